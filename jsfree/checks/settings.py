"""Settings that are each valid and do not go together, as far as they tell by themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator

from jsfree.checks.findings import Finding, fails, note, ok
from jsfree.config import RunConfig
from jsfree.sizing.work import Work
from jsfree.uris import has_scheme

AREA = "settings"
FEW_STEPS = 10


def check_settings(config: RunConfig, work: Work) -> Iterator[Finding]:
    """What the settings of different sections say about each other, for rounds of ``work.images`` images."""
    problems = [
        *_training(config, work),
        *_generation(config),
        *_placement(config),
    ]
    yield from problems or [ok(AREA, "contradictions", "none between sections")]


def _training(config: RunConfig, work: Work) -> Iterator[Finding]:
    train, held_out = config.train, config.train.validation.pairs
    trained = work.pairs - held_out
    if trained < train.pairs_per_step:
        without = f" without the {held_out} of 'train.validation.pairs'" if held_out else ""
        yield fails(
            AREA,
            "pairs for training",
            f"{work.images // work.rounds} {'pairs' if config.imported else 'images'} a round leave at most {trained}"
            f" selected pairs{without}, fewer than the {train.pairs_per_step} of one step (train.pairs_per_step)",
            f"{'import more' if config.imported else 'raise source.count'}, widen select.first to select.last, or lower"
            " train.pairs_per_step",
        )
        return
    if work.steps < FEW_STEPS:
        yield note(
            AREA,
            "steps of training",
            f"{work.pairs} selected pairs are only {work.steps} optimizer steps",
            "take more images, or fewer pairs a step, for a visible effect",
        )
    if train.checkpoint_every >= work.steps and work.steps >= 100:
        yield note(
            AREA,
            "checkpoints",
            f"train.checkpoint_every is {train.checkpoint_every}, and there are {work.steps} steps: none is written",
            "lower it, or a lost worker begins the training again",
        )
    if held_out and train.validation.every > work.steps:
        yield note(
            AREA,
            "validation",
            f"train.validation.every is {train.validation.every}, there are {work.steps} steps: one look, at the end",
            "lower it",
        )
    if train.cache_vision_features and train.epochs == 1:
        yield note(
            AREA,
            "train.cache_vision_features",
            "with one epoch each image is seen twice (reference and training): little is won for the disk it takes",
        )


def _generation(config: RunConfig) -> Iterator[Finding]:
    decoding = config.generate.decoding
    if decoding.temperature == 0 and config.imported is None:
        yield note(
            AREA,
            "generate.decoding.temperature",
            "at temperature 0 both captions follow the most probable token: many pairs are twice the same caption",
            "set it to 1, as the paper",
        )
    for stage, resources in (("generate", config.generate.resources), ("train", config.train.resources)):
        if config.captioner.dtype == "bfloat16" and not resources.gpus:
            yield note(
                AREA,
                f"{stage}.resources",
                "captioner.dtype is bfloat16, which CPUs compute slowly",
                f"set {stage}.resources.gpus: 1, or captioner.dtype: float32",
            )
    if config.generate.compile == "cuda_graphs" and not config.generate.resources.gpus:
        yield fails(
            AREA,
            "generate.compile",
            "cuda_graphs needs a GPU, and generate.resources.gpus is 0",
            "set generate.compile: none, or generate.resources.gpus: 1",
        )


def _placement(config: RunConfig) -> Iterator[Finding]:
    if (
        (config.ray.address or os.environ.get("RAY_ADDRESS"))
        and not has_scheme(config.run)
        and not config.run.startswith("/")
    ):
        yield note(
            AREA,
            "run",
            f"{config.run!r} is a relative path, and the stages run on a cluster",
            "all nodes must see it under the same path: give a shared folder or a URI with --run",
        )
    if config.serve.host not in ("127.0.0.1", "localhost", "::1"):
        yield note(
            AREA,
            "serve.host",
            f"{config.serve.host} is open to whoever reaches it: there is no authentication",
            "keep 127.0.0.1, or put a proxy before it",
        )
