"""How much a run has to do: images, captions, pairs, steps, and what they take on a disk. Pure.

What is not known before a run is estimated, and said to be: how long captions are, and how many pairs fall out.
"""

from __future__ import annotations

from dataclasses import dataclass

from jsfree.config import RunConfig
from jsfree.sizing import footprint
from jsfree.sizing.footprint import Parameters

CAPTION_TOKENS = 130
"""Of LLaVA-1.5's answer to "Describe image in detail.", on average; an estimate."""
MINIWORLD_TOKENS = 42
"""The same in MiniWorld, measured (``tokens`` over rows in a run's manifests)."""
ROW_BYTES = 40
"""A caption's token as text, number and share of its sentence scores, compressed."""


@dataclass(frozen=True)
class Work:
    """What all rounds of a run have to do together, but for ``pairs`` and ``steps``, which are of one round."""

    images: int
    captions: int
    """Of stage 1."""
    evaluated: int
    """Captions of evaluation: of m0 and of every round's model, in every mode."""
    pairs: int
    """Selected pairs of a round, if no row fails and no two captions are the same."""
    steps: int
    """Optimizer steps of a round's training."""
    rounds: int
    caption_tokens: int


def work_of(config: RunConfig, images: int, evaluated: int | None = None) -> Work:
    """The work of a run whose rounds take so many images each, and whose evaluation takes ``evaluated``."""
    pairs = images * (config.select.last - config.select.first + 1) // config.select.splits
    if config.select.max_pairs is not None:
        pairs = min(pairs, config.select.max_pairs)
    trained = max(0, pairs - config.train.validation.pairs)
    steps = trained // config.train.pairs_per_step * config.train.epochs
    modes, models = len(config.evaluate.modes), 1 + config.rounds
    return Work(
        images * config.rounds,
        2 * images * config.rounds,
        (config.evaluate.source.count or evaluated or images) * modes * models,
        pairs,
        steps,
        config.rounds,
        caption_tokens(config),
    )


def caption_tokens(config: RunConfig) -> int:
    """Tokens of a caption, on average."""
    usual = MINIWORLD_TOKENS if config.captioner.ref.startswith("miniworld:") else CAPTION_TOKENS
    return min(usual, config.generate.decoding.max_new_tokens)


def checkpoints(config: RunConfig, work: Work) -> int:
    """Most checkpoints of a round's training on the disk at once."""
    train = config.train
    return footprint.checkpoints_held(work.steps, train.checkpoint_every, train.keep) if work.steps else 0


def disk_bytes(
    config: RunConfig, work: Work, parameters: Parameters, image_bytes: int, features: int
) -> dict[str, int]:
    """What a whole run leaves in its folder at most, by what it is.

    Args:
        image_bytes: of an image that travels in the tables; 0 where they only refer to it.
        features: bytes of the vision tower's features of an image.
    """
    caption = ROW_BYTES * work.caption_tokens
    # samples, pairs, scored and selected hold an image each, evaluation two tables of captions.
    pair_tables = work.images * (3 * image_bytes + 4 * caption) + work.rounds * work.pairs * (image_bytes + 4 * caption)
    caption_tables = 2 * work.evaluated * (image_bytes + caption)
    train = config.train
    each = footprint.checkpoint_bytes(parameters, train.zero_stage, config.captioner.dtype)
    held = checkpoints(config, work)
    kept = work.rounds * min(held, train.keep) + max(0, held - train.keep)
    return {
        "tables": pair_tables + caption_tables,
        "models": work.rounds * footprint.model_bytes(parameters, config.captioner.dtype),
        "checkpoints": kept * each,
        "features": work.rounds * work.pairs * features if train.cache_vision_features else 0,
    }
