"""Which images a round trains on, and which ones models are evaluated on.

Images are put in the order of a hash of (seed, image id), so that a missing one changes the order of no others,
and the order of files or rows does not matter. Round k takes the k-th ``count`` from the front, evaluation takes
its own from the end, so that one folder can serve both and they share no id. That they share no content either is
seen to where training images are read (``jsfree.images.overlap``).
MiniWorld has no end; its scenes are numbered by (seed, round), and evaluation counts from
``evaluate.source.first`` for every seed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from jsfree.config import RunConfig, Source
from jsfree.errors import RowError, SourceError
from jsfree.images.drawing import Drawn, draw
from jsfree.images.folders import folder_images
from jsfree.images.listing import Entry, Unusable
from jsfree.images.llava import llava_images
from jsfree.images.samples import Samples
from jsfree.images.tables import table_images
from jsfree.images.tars import tar_images
from jsfree.run.locations import is_same_place
from jsfree.schemas import ImageRef, Sample

SCENES_PER_SEED = 1_000_000
LISTERS: dict[str, Callable[[Source], Iterator[Entry | Unusable]]] = {
    "folder": folder_images,
    "llava_json": llava_images,
    "parquet": table_images,
    "webdataset": tar_images,
}


@dataclass(frozen=True)
class Look:
    """A look at a source: how many images it lists, how many entries repeat one of them, and some samples.

    ``unusable`` counts the rows that name no usable image by kind, of ``rows`` in all; ``first_unusable`` is one.
    """

    images: int
    repeated: int
    samples: list[Sample]
    rows: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    first_unusable: RowError | None = None


def look_at(config: RunConfig, source: Source, most: int, listed: dict[object, Drawn]) -> Look:
    """Look at a source without reading more than ``most`` images' content.

    Args:
        listed: what was listed already; a source that reads where another one does is listed once.

    Raises:
        SourceError: the source is missing, unreadable, empty, or has too few images.
    """
    if source.kind == "miniworld":
        count = _scenes(source, "source" if source is config.source else "evaluate.source")
        evaluated = source is config.evaluate.source
        if evaluated:
            _require_other_scenes(config)
        first = config.evaluate.source.first if evaluated else config.seed * SCENES_PER_SEED
        return Look(count, 0, list(_scene_samples(config, source, first)[:most]), count)
    place = (source.kind, source.path, source.images, source.column, source.allow_outside)
    if place not in listed:
        listed[place] = _drawn(source, config.seed)
    drawn = listed[place]
    if source is config.source:
        _require(config, len(drawn), config.rounds, _held_out(config))
    else:
        _require_evaluation(config, len(drawn))
    # A row of a table cannot be read without those before it: the first ones tell as much for less.
    numbers = drawn.first_listed(most) if source.kind == "parquet" else range(min(most, len(drawn)))
    samples = list(_samples(config, drawn, numbers))
    rows, unusable = drawn.listed, drawn.unusable
    return Look(len(drawn), drawn.repeated, samples, rows, unusable.kinds, unusable.first)


def images_of_a_round(config: RunConfig, there: int) -> int:
    """Images that a round takes of so many."""
    return config.source.count or max(0, there - _held_out(config))


def training_samples(config: RunConfig, round_number: int) -> list[Sample]:
    """The samples of a round, all at once; ``draw_training`` makes them one by one, and raises the same errors."""
    return list(draw_training(config, round_number))


def evaluation_samples(config: RunConfig) -> list[Sample]:
    """The samples of the evaluation, all at once; ``draw_evaluation`` makes them one by one."""
    return list(draw_evaluation(config))


def draw_training(config: RunConfig, round_number: int) -> Samples:
    """The samples of a round, counted from 1; no two rounds share an id (paper, Algorithm 1: unlabelled images).

    Raises:
        SourceError: the source is missing, unreadable, empty, or has too few images for all rounds and evaluation.
    """
    source = config.source
    if source.kind == "miniworld":
        first = config.seed * SCENES_PER_SEED + (round_number - 1) * _scenes(source, "source")
        return _scene_samples(config, source, first)
    rounds = max(config.rounds, round_number)
    held_out = _held_out(config)
    drawn = _drawn(source, config.seed, source.count and rounds * source.count, held_out)
    _require(config, len(drawn), rounds, held_out)
    available = len(drawn) - held_out
    count = source.count or available
    return _samples(config, drawn, range((round_number - 1) * count, min(round_number * count, available)))


def draw_evaluation(config: RunConfig) -> Samples:
    """The samples that models are compared on; no round's training samples have one of their ids.

    Raises:
        SourceError: as for :func:`draw_training`; also if MiniWorld's training scenes would be evaluated on.
    """
    source = config.evaluate.source
    if source.kind == "miniworld":
        _require_other_scenes(config)
        return _scene_samples(config, source, source.first)
    shared, count = _shared(config), source.count
    training = config.rounds * (config.source.count or 0) if shared else 0
    needed = max(training, config.rounds) if shared else 0
    drawn = _drawn(source, config.seed, needed if count else None, count or 0)
    if shared:
        _require(config, len(drawn), config.rounds, _held_out(config))
    else:
        _require_evaluation(config, len(drawn))
    start = len(drawn) - count if count else training
    return _samples(config, drawn, range(start, len(drawn)))


def _require_evaluation(config: RunConfig, there: int) -> None:
    source = config.evaluate.source
    if not _shared(config) and source.count and there < source.count:
        raise SourceError(
            f"{source.path} has {there} images, but 'evaluate.source.count' asks for {source.count};"
            " lower it or add images"
        )


def _scenes(source: Source, key: str) -> int:
    if source.count is None:
        raise SourceError("MiniWorld has no end of scenes", f"set '{key}.count' to how many to draw")
    return source.count


def _scene_samples(config: RunConfig, source: Source, first: int) -> Samples:
    from jsfree.miniworld import world

    def image(number: int) -> ImageRef:
        scene = world.scene(source.split, number)
        content = world.png_bytes(scene)
        return {"id": scene.scene_id, "uri": None, "bytes": content, "sha256": hashlib.sha256(content).hexdigest()}

    count = _scenes(source, "source" if source is config.source else "evaluate.source")
    numbers = range(first, first + count)
    return Samples(numbers, image, lambda number: f"{source.split}/{number}", config.prompt, listed=count)


def _require_other_scenes(config: RunConfig) -> None:
    training, evaluation = config.source, config.evaluate.source
    if config.imported is not None or training.kind != "miniworld" or training.split != evaluation.split:
        return
    trained = config.seed * SCENES_PER_SEED
    evaluated = range(evaluation.first, evaluation.first + _scenes(evaluation, "evaluate.source"))
    if trained < evaluated.stop and evaluated.start < trained + config.rounds * _scenes(training, "source"):
        raise SourceError(
            f"MiniWorld's {evaluation.split!r} scenes from {max(trained, evaluated.start)} on are both trained and"
            " evaluated on",
            "set 'evaluate.source.split' to another split",
        )


def _drawn(source: Source, seed: int, first: int | None = None, last: int = 0) -> Drawn:
    """The images of a source in the order of blake2b(seed, image id); arguments as of ``draw``."""
    drawn = draw(LISTERS[source.kind](source), seed, first, last)
    if not len(drawn) and drawn.unusable.first is not None:
        raise SourceError(
            f"{source.path}: none of its {drawn.listed} rows names an image that can be used;"
            f" first: {drawn.unusable.first}"
        )
    return drawn


def _shared(config: RunConfig) -> bool:
    """Whether training and evaluation draw from the same images."""
    training, evaluation = config.source, config.evaluate.source
    if config.imported is not None:  # pairs bring their own images
        return False
    if training.kind != evaluation.kind or training.path is None or evaluation.path is None:
        return False
    return is_same_place(training.path, evaluation.path)


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
            f"{config.source.path} has {there} images, but {training + evaluation} are needed ({parts})",
            "lower 'source.count', 'rounds' or 'evaluate.source.count', or add images",
        )


def _samples(config: RunConfig, drawn: Drawn, numbers: Sequence[int]) -> Samples:
    def key(number: int) -> str:
        image = drawn.image(number)
        return f"{image['id']}\0{image['uri']}"

    return Samples(numbers, drawn.image, key, config.prompt, drawn.unusable, drawn.listed)
