"""The workload of a run: images, captions, pairs, steps, and their disk space. Pure functions.

The length of captions is an estimate, and the number of pairs an upper bound: neither is known before a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from jsfree.config import RunConfig
from jsfree.sizing import footprint
from jsfree.sizing.footprint import Parameters

CAPTION_TOKENS = 130
"""Average length of LLaVA-1.5's answer to "Describe image in detail."; an estimate."""
MINIWORLD_TOKENS = 42
"""The same in MiniWorld, measured (``tokens`` over rows in a run's manifests)."""
ROW_BYTES = 40
"""Bytes per token of a caption: text, token id and share of the sentence scores, compressed."""
CANDIDATE_BYTES = 8
"""Further bytes per token of a candidate: its log-probability and its end in the text."""


@dataclass(frozen=True)
class Workload:
    """The work of all rounds together, except for ``pairs`` and ``steps``, which are per round."""

    images: int
    captions: int
    """Captions of stage 1."""
    evaluated: int
    """Captions of evaluation, of m0 and of every round's model in every mode."""
    pairs: int
    """Selected pairs of a round, if no row fails and no pair has identical captions."""
    steps: int
    """Optimizer steps of a round's training."""
    rounds: int
    caption_tokens: int


def workload_of(config: RunConfig, images: int, evaluated: int | None = None) -> Workload:
    """The workload of a run with ``images`` per round and ``evaluated`` evaluation images (default: ``images``)."""
    pairs = images * (config.select.last - config.select.first + 1) // config.select.splits
    if config.select.max_pairs is not None:
        pairs = min(pairs, config.select.max_pairs)
    trained = max(0, pairs - config.train.validation.pairs)
    steps = trained // config.train.pairs_per_step * config.train.epochs
    modes, models = len(config.evaluate.modes), 1 + config.rounds
    return Workload(
        images * config.rounds,
        (2 + config.generate.samples) * images * config.rounds,
        (config.evaluate.source.count or evaluated or images) * modes * models,
        pairs,
        steps,
        config.rounds,
        caption_tokens(config),
    )


def caption_tokens(config: RunConfig) -> int:
    """Average tokens of a caption."""
    usual = MINIWORLD_TOKENS if config.captioner.ref.startswith("miniworld:") else CAPTION_TOKENS
    return min(usual, config.generate.decoding.max_new_tokens)


def max_checkpoints(config: RunConfig, work: Workload) -> int:
    """Most checkpoints of a round's training on the disk at a time."""
    train = config.train
    return footprint.max_checkpoints(work.steps, train.checkpoint_every, train.keep) if work.steps else 0


def disk_bytes(
    config: RunConfig, work: Workload, parameters: Parameters, image_bytes: int, features: int
) -> dict[str, int]:
    """Most bytes that a whole run leaves in its folder, by kind.

    Args:
        image_bytes: size of an image stored in the tables; 0 if they only refer to images.
        features: bytes of the vision tower's features of an image.
    """
    caption = ROW_BYTES * work.caption_tokens
    # An image is stored in samples, pairs, scored and selected, and in two tables of evaluation captions.
    pair_tables = work.images * (3 * image_bytes + 4 * caption) + work.rounds * work.pairs * (image_bytes + 4 * caption)
    # Candidates repeat the pair and are stored in pairs and scored, with two more numbers per token.
    candidates = work.captions * (caption + CANDIDATE_BYTES * work.caption_tokens) if config.generate.samples else 0
    caption_tables = 2 * work.evaluated * (image_bytes + caption)
    train = config.train
    checkpoint = footprint.checkpoint_bytes(parameters, train.zero_stage, config.captioner.dtype)
    held = max_checkpoints(config, work)
    kept = work.rounds * min(held, train.keep) + max(0, held - train.keep)
    return {
        "tables": pair_tables + 2 * candidates + caption_tables,
        "models": work.rounds * footprint.model_bytes(parameters, config.captioner.dtype),
        "checkpoints": kept * checkpoint,
        "features": work.rounds * work.pairs * features if train.cache_vision_features else 0,
    }
