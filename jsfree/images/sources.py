"""Selects the training images of each round and the evaluation images.

Images are sorted by a hash of (seed, image id). The order is therefore independent of the order of files or rows, and
a missing image does not move any other. Round k uses the k-th ``source.count`` images from the start. Evaluation uses
images from the end, so one source can serve both, and no id is used twice. Images with equal content are excluded when
training images are read (``jsfree.images.overlap``).

MiniWorld has an unlimited number of scenes. Training scenes are numbered by (seed, round); evaluation scenes start at
``evaluate.source.first`` for every seed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from jsfree.config import RunConfig, Source
from jsfree.errors import RowError, SourceError
from jsfree.images.drawing import DrawnImages, draw
from jsfree.images.folders import folder_images
from jsfree.images.listing import Entry, Unusable
from jsfree.images.llava import llava_images
from jsfree.images.samples import Samples
from jsfree.images.tables import table_images
from jsfree.images.tars import tar_images
from jsfree.run.locations import is_same_location
from jsfree.schemas import ImageRef, Sample

SCENES_PER_SEED = 1_000_000
LISTERS: dict[str, Callable[[Source], Iterator[Entry | Unusable]]] = {
    "folder": folder_images,
    "llava_json": llava_images,
    "parquet": table_images,
    "webdataset": tar_images,
}


@dataclass(frozen=True)
class SourceSummary:
    """Contents of a source.

    Attributes:
        images: number of distinct images.
        repeated: number of rows whose image occurs in an earlier row.
        samples: a few samples.
        rows: number of rows that refer to an image, or should.
        unusable: number of rows without a usable image, by kind of error.
        first_unusable: the error of the first such row.
    """

    images: int
    repeated: int
    samples: list[Sample]
    rows: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    first_unusable: RowError | None = None


def summarize_source(
    config: RunConfig, source: Source, max_samples: int, listed: dict[object, DrawnImages]
) -> SourceSummary:
    """List a source, with references to at most ``max_samples`` images.

    Args:
        listed: cache of listings, updated in place; sources at the same location are listed once.

    Raises:
        SourceError: the source is missing, unreadable, empty, or has too few images.
    """
    if source.kind == "miniworld":
        samples = evaluation_samples(config) if source is config.evaluate.source else training_samples(config, 1)
        return SourceSummary(images=len(samples), repeated=0, samples=list(samples[:max_samples]), rows=len(samples))
    key = (source.kind, source.path, source.images, source.column, source.allow_outside)
    if key not in listed:
        listed[key] = _draw(source, config.seed)
    drawn = listed[key]
    if source is config.source:
        _require_training(config, len(drawn), config.rounds, _held_out(config))
    else:
        _require_evaluation(config, len(drawn))
    # The first rows of a table are the cheapest to read: a row cannot be read without those before it.
    numbers = drawn.first_listed(max_samples) if source.kind == "parquet" else range(min(max_samples, len(drawn)))
    return SourceSummary(
        images=len(drawn),
        repeated=drawn.repeated,
        samples=list(_samples(config, drawn, numbers)),
        rows=drawn.listed,
        unusable=drawn.unusable.kinds,
        first_unusable=drawn.unusable.first,
    )


def images_per_round(config: RunConfig, available: int) -> int:
    """Number of images that each round uses if the source has ``available`` images."""
    return config.source.count or max(0, available - _held_out(config))


def training_samples(config: RunConfig, round_number: int) -> Samples:
    """The samples of a round, counted from 1 (paper, Algorithm 1: unlabelled images).

    No two rounds share an image id.

    Raises:
        SourceError: the source is missing, unreadable, empty, or has too few images for all rounds and evaluation.
    """
    source = config.source
    if source.kind == "miniworld":
        first = config.seed * SCENES_PER_SEED + (round_number - 1) * _scene_count(source, "source")
        return _scene_samples(config, source, first, "source")
    rounds = max(config.rounds, round_number)
    held_out = _held_out(config)
    drawn = _draw(source, config.seed, source.count and rounds * source.count, held_out)
    _require_training(config, len(drawn), rounds, held_out)
    available = len(drawn) - held_out
    count = source.count or available
    return _samples(config, drawn, range((round_number - 1) * count, min(round_number * count, available)))


def evaluation_samples(config: RunConfig) -> Samples:
    """The samples of the evaluation. No round trains on an image with one of their ids.

    Raises:
        SourceError: as for :func:`training_samples`; also if MiniWorld's training and evaluation scenes overlap.
    """
    source = config.evaluate.source
    if source.kind == "miniworld":
        _require_other_scenes(config)
        return _scene_samples(config, source, source.first, "evaluate.source")
    shared, count = _is_shared(config), source.count
    training = config.rounds * (config.source.count or 0) if shared else 0
    needed = max(training, config.rounds) if shared else 0
    drawn = _draw(source, config.seed, needed if count else None, count or 0)
    if shared:
        _require_training(config, len(drawn), config.rounds, _held_out(config))
    else:
        _require_evaluation(config, len(drawn))
    start = len(drawn) - count if count else training
    return _samples(config, drawn, range(start, len(drawn)))


def _samples(config: RunConfig, drawn: DrawnImages, numbers: Sequence[int]) -> Samples:
    def key(number: int) -> str:
        image = drawn.image(number)
        return f"{image['id']}\0{image['uri']}"

    return Samples(numbers, drawn.image, key, config.prompt, drawn.unusable, drawn.listed)


def _scene_samples(config: RunConfig, source: Source, first: int, section: str) -> Samples:
    from jsfree.miniworld import world

    def image(number: int) -> ImageRef:
        scene = world.scene(source.split, number)
        content = world.png_bytes(scene)
        return {"id": scene.scene_id, "uri": None, "bytes": content, "sha256": hashlib.sha256(content).hexdigest()}

    count = _scene_count(source, section)
    numbers = range(first, first + count)
    return Samples(numbers, image, lambda number: f"{source.split}/{number}", config.prompt, listed=count)


def _scene_count(source: Source, section: str) -> int:
    if source.count is None:
        raise SourceError(f"'{section}.count' is null, but MiniWorld has an unlimited number of scenes", "set it")
    return source.count


def _require_other_scenes(config: RunConfig) -> None:
    """Refuse MiniWorld scenes that are used for both training and evaluation."""
    training, evaluation = config.source, config.evaluate.source
    if config.imported is not None or training.kind != "miniworld" or training.split != evaluation.split:
        return
    trained = config.seed * SCENES_PER_SEED
    evaluated = range(evaluation.first, evaluation.first + _scene_count(evaluation, "evaluate.source"))
    if trained < evaluated.stop and evaluated.start < trained + config.rounds * _scene_count(training, "source"):
        raise SourceError(
            f"MiniWorld's {evaluation.split!r} scenes from {max(trained, evaluated.start)} on are both trained and"
            " evaluated on",
            "set 'evaluate.source.split' to another split",
        )


def _draw(source: Source, seed: int, first: int | None = None, last: int = 0) -> DrawnImages:
    """List a source and sort its images; arguments as in ``draw``."""
    drawn = draw(LISTERS[source.kind](source), seed, first, last)
    if not len(drawn) and drawn.unusable.first is not None:
        raise SourceError(
            f"{source.path}: none of its {drawn.listed} rows has a usable image; first: {drawn.unusable.first}"
        )
    return drawn


def _is_shared(config: RunConfig) -> bool:
    """Whether training and evaluation use the same source."""
    training, evaluation = config.source, config.evaluate.source
    if config.imported is not None:  # imported pairs bring their own images
        return False
    if training.kind != evaluation.kind or training.path is None or evaluation.path is None:
        return False
    return is_same_location(training.path, evaluation.path)


def _held_out(config: RunConfig) -> int:
    """Number of images at the end of the order that are reserved for evaluation."""
    return (config.evaluate.source.count or 0) if _is_shared(config) else 0


def _require_evaluation(config: RunConfig, available: int) -> None:
    source = config.evaluate.source
    if not _is_shared(config) and source.count and available < source.count:
        raise SourceError(
            f"{source.path} has {available} images, but 'evaluate.source.count' is {source.count}",
            "lower it or add images",
        )


def _require_training(config: RunConfig, available: int, rounds: int, held_out: int) -> None:
    shared = _is_shared(config)
    if shared and config.source.count is None and not held_out:
        raise SourceError(
            f"all images of {config.source.path} are used for both training and evaluation",
            "set 'evaluate.source.count' to the number of images to hold out",
        )
    training = rounds * (config.source.count or 1)
    evaluation = held_out or (1 if shared else 0)
    if available < training + evaluation:
        parts = f"{rounds} x {config.source.count or 1} for training"
        parts += f" and {evaluation} for evaluation" if evaluation else ""
        raise SourceError(
            f"{config.source.path} has {available} images, but {training + evaluation} are needed ({parts})",
            "lower 'source.count', 'rounds' or 'evaluate.source.count', or add images",
        )
