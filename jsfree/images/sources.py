"""Which images a round trains on, and which ones models are evaluated on.

Images are put in the order of a hash of (seed, image id), so that a missing one changes the order of no others,
and the order of files or rows does not matter. Round k takes the k-th ``count`` from the front, evaluation takes
its own from the end, so that one folder can serve both and they share no id. That they share no content either is
seen to where training images are read (``jsfree.overlap``).
MiniWorld has no end; its scenes are numbered by (seed, round), and evaluation counts from
``evaluate.source.first`` for every seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jsfree.config import RunConfig, Source
from jsfree.errors import SourceError
from jsfree.images.listing import Candidate, candidates, distinct, listing, normalised
from jsfree.images.tables import read_bytes
from jsfree.schemas import ImageRef, Sample, sample_id

SCENES_PER_SEED = 1_000_000


@dataclass(frozen=True)
class Look:
    """A look at a source: how many images it lists, how many entries repeat one of them, and some samples."""

    images: int
    repeated: int
    samples: list[Sample]


def look_at(config: RunConfig, source: Source, most: int, listed: dict[object, list[Candidate]]) -> Look:
    """Look at a source without reading more than ``most`` images' content.

    Args:
        listed: what was listed already; a source that reads where another one does is listed once.

    Raises:
        SourceError: the source is missing, unreadable, empty, or has too few images.
    """
    if source.kind == "miniworld":
        count = _scenes(source, "source" if source is config.source else "evaluate.source")
        few = source.model_copy(update={"count": min(most, count)})
        evaluated = source is config.evaluate.source
        if evaluated:
            _require_other_scenes(config)
        first = config.evaluate.source.first if evaluated else config.seed * SCENES_PER_SEED
        return Look(count, 0, _scene_samples(config, few, first))
    place = (source.kind, source.path, source.images, source.column)
    if place not in listed:
        listed[place] = list(candidates(source))
    entries = listed[place]
    unique = distinct(entries)
    if source is config.source:
        _require(config, len(unique), config.rounds, _held_out(config))
    else:
        _require_evaluation(config, len(unique))
    # Rows of tables come in groups that are read whole: those of the first tables tell as much for less.
    drawn = unique if source.kind == "parquet" else _in_order(unique, config.seed)
    return Look(len(unique), len(entries) - len(unique), _samples(config, source, drawn[:most]))


def images_of_a_round(config: RunConfig, there: int) -> int:
    """Images that a round takes of so many."""
    return config.source.count or max(0, there - _held_out(config))


def training_samples(config: RunConfig, round_number: int) -> list[Sample]:
    """The samples of a round, counted from 1; no two rounds share an id (paper, Algorithm 1: unlabelled images).

    Raises:
        SourceError: the source is missing, unreadable, empty, or has too few images for all rounds and evaluation.
    """
    source = config.source
    if source.kind == "miniworld":
        first = config.seed * SCENES_PER_SEED + (round_number - 1) * _scenes(source, "source")
        return _scene_samples(config, source, first)
    ordered = _ordered(source, config.seed)
    rounds = max(config.rounds, round_number)
    held_out = _held_out(config)
    _require(config, len(ordered), rounds, held_out)
    available = len(ordered) - held_out
    count = source.count or available
    return _samples(config, source, ordered[(round_number - 1) * count : min(round_number * count, available)])


def evaluation_samples(config: RunConfig) -> list[Sample]:
    """The samples that models are compared on; no round's training samples have one of their ids.

    Raises:
        SourceError: as for :func:`training_samples`; also if MiniWorld's training scenes would be evaluated on.
    """
    source = config.evaluate.source
    if source.kind == "miniworld":
        _require_other_scenes(config)
        return _scene_samples(config, source, source.first)
    ordered = _ordered(source, config.seed)
    if _shared(config):
        _require(config, len(ordered), config.rounds, _held_out(config))
        start = len(ordered) - source.count if source.count else config.rounds * (config.source.count or 0)
    else:
        _require_evaluation(config, len(ordered))
        start = len(ordered) - (source.count or len(ordered))
    return _samples(config, source, ordered[start:])


def _require_evaluation(config: RunConfig, there: int) -> None:
    source = config.evaluate.source
    if not _shared(config) and source.count and there < source.count:
        raise SourceError(
            f"{source.path} has {there} images, but 'evaluate.source.count' asks for {source.count};"
            " lower it or add images"
        )


def _scenes(source: Source, key: str) -> int:
    if source.count is None:
        raise SourceError(f"MiniWorld has no end of scenes; set '{key}.count' to how many to draw")
    return source.count


def _scene_samples(config: RunConfig, source: Source, first: int) -> list[Sample]:
    from jsfree.miniworld import world

    count = _scenes(source, "source" if source is config.source else "evaluate.source")
    scenes = (world.scene(source.split, index) for index in range(first, first + count))
    return [_sample(config, _embedded(scene.scene_id, world.png_bytes(scene))) for scene in scenes]


def _require_other_scenes(config: RunConfig) -> None:
    training, evaluation = config.source, config.evaluate.source
    if config.imported is not None or training.kind != "miniworld" or training.split != evaluation.split:
        return
    trained = config.seed * SCENES_PER_SEED
    evaluated = range(evaluation.first, evaluation.first + _scenes(evaluation, "evaluate.source"))
    if trained < evaluated.stop and evaluated.start < trained + config.rounds * _scenes(training, "source"):
        raise SourceError(
            f"MiniWorld's {evaluation.split!r} scenes from {max(trained, evaluated.start)} on are both trained and"
            " evaluated on; set 'evaluate.source.split' to another split"
        )


def _ordered(source: Source, seed: int) -> list[Candidate]:
    """All images of a source in the order of blake2b(seed, image id)."""
    return _in_order(listing(source), seed)


def _in_order(images: Iterable[Candidate], seed: int) -> list[Candidate]:
    return sorted(images, key=lambda candidate: (_rank(seed, candidate.key or candidate.id), candidate.id))


def _rank(seed: int, image_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{image_id}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _shared(config: RunConfig) -> bool:
    """Whether training and evaluation draw from the same images."""
    training, evaluation = config.source, config.evaluate.source
    if config.imported is not None:  # pairs bring their own images
        return False
    if training.kind != evaluation.kind or training.path is None or evaluation.path is None:
        return False
    return normalised(training.path) == normalised(evaluation.path)


def _held_out(config: RunConfig) -> int:
    """Images at the end of the order that training leaves to evaluation."""
    return (config.evaluate.source.count or 0) if _shared(config) else 0


def _require(config: RunConfig, there: int, rounds: int, held_out: int) -> None:
    shared = _shared(config)
    if shared and config.source.count is None and not held_out:
        raise SourceError(
            f"{config.source.path} is trained on as a whole and evaluated on as a whole;"
            " set 'evaluate.source.count' to how many images to hold out"
        )
    training = rounds * (config.source.count or 1)
    evaluation = held_out or (1 if shared else 0)
    if there < training + evaluation:
        parts = f"{rounds} x {config.source.count or 1} for training"
        parts += f" and {evaluation} for evaluation" if evaluation else ""
        raise SourceError(
            f"{config.source.path} has {there} images, but {training + evaluation} are needed ({parts});"
            " lower 'source.count', 'rounds' or 'evaluate.source.count', or add images"
        )


def _samples(config: RunConfig, source: Source, candidates: Sequence[Candidate]) -> list[Sample]:
    """Samples of the chosen images; only now are those inside tables read."""
    content = read_bytes(source, candidates)
    return [_sample(config, _reference(candidate, content.get(candidate.id))) for candidate in candidates]


def _reference(candidate: Candidate, content: bytes | str | None) -> ImageRef:
    if isinstance(content, bytes):
        return _embedded(candidate.id, content)
    return {"id": candidate.id, "uri": content or candidate.uri, "bytes": None, "sha256": None}


def _embedded(image_id: str, content: bytes) -> ImageRef:
    return {"id": image_id, "uri": None, "bytes": content, "sha256": hashlib.sha256(content).hexdigest()}


def _sample(config: RunConfig, image: ImageRef) -> Sample:
    return {"sample_id": sample_id(image["id"], config.prompt), "image": image, "prompt": config.prompt}
