"""Checks for valid settings that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from jsfree.checks.findings import Finding, fails, note, ok
from jsfree.config import Generate, RunConfig
from jsfree.sizing.workload import Workload
from jsfree.uris import has_scheme

AREA = "settings"
MIN_STEPS = 10
BAD_PROMPT_FAILURES = 0.05
"""Upper bound of the answers without a sentence that MiniWorld's m0 gives to the default ``generate.bad_prompt``; 4 of
300 in a count of 2026-11-27."""


def check_settings(config: RunConfig, workload: Workload) -> Iterator[Finding]:
    """Check settings of different sections against each other, and against the workload."""
    problems = [
        *_training(config, workload),
        *_generation(config),
        *_bad_prompt(config),
        *_placement(config),
    ]
    yield from problems or [ok(AREA, "contradictions", "none between sections")]


def _training(config: RunConfig, workload: Workload) -> Iterator[Finding]:
    train, held_out = config.train, config.train.validation.pairs
    trained = workload.pairs - held_out
    if trained < train.pairs_per_step:
        without = f" without the {held_out} of 'train.validation.pairs'" if held_out else ""
        yield fails(
            AREA,
            "pairs for training",
            f"{workload.images // workload.rounds} {'pairs' if config.imported else 'images'} per round leave at most"
            f" {trained} selected pairs{without}, fewer than the {train.pairs_per_step} of one step",
            f"{'import more' if config.imported else 'raise source.count'}, widen select.first to select.last, or lower"
            " train.pairs_per_step",
        )
        return
    if workload.steps < MIN_STEPS:
        yield note(
            AREA,
            "steps of training",
            f"{workload.pairs} selected pairs give only {workload.steps} optimizer steps",
            "use more images, or fewer pairs per step, for a visible effect",
        )
    if train.checkpoint_every >= workload.steps and workload.steps >= 100:
        yield note(
            AREA,
            "checkpoints",
            f"no checkpoint is written: train.checkpoint_every is {train.checkpoint_every}, but training has only"
            f" {workload.steps} steps",
            "lower it; otherwise training starts over if a worker is lost",
        )
    if held_out and train.validation.every > workload.steps:
        yield note(
            AREA,
            "validation",
            f"validation runs only once: train.validation.every is {train.validation.every}, but training has only"
            f" {workload.steps} steps",
            "lower it",
        )
    if train.cache_vision_features and train.epochs == 1:
        yield note(
            AREA,
            "train.cache_vision_features",
            "with one epoch each image is seen only twice (reference and training): little gain for the disk space",
        )


def _generation(config: RunConfig) -> Iterator[Finding]:
    decoding = config.generate.decoding
    if decoding.temperature == 0 and config.imported is None:
        yield note(
            AREA,
            "generate.decoding.temperature",
            "at temperature 0 both captions take the most probable token: many pairs have identical captions",
            "set it to 1, as in the paper",
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


def _bad_prompt(config: RunConfig) -> Iterator[Finding]:
    """Check that MiniWorld's m0, which was not trained to follow instructions, gets a prompt that it can answer."""
    settings = config.generate
    is_default = settings.bad_prompt == Generate.model_fields["bad_prompt"].default
    if settings.loser != "bad_prompt" or not is_default or not config.captioner.ref.startswith("miniworld:"):
        return
    report = fails if config.max_failed_fraction < BAD_PROMPT_FAILURES else note
    yield report(
        AREA,
        "generate.bad_prompt",
        "MiniWorld's captioner does not follow instructions: most of its answers to the default prompt are one word,"
        f" and some have no sentence, so that more than max_failed_fraction ({config.max_failed_fraction:g}) of the"
        " pairs may fail",
        f"--set 'generate.bad_prompt=Imagine. {config.prompt}'",
    )


def _placement(config: RunConfig) -> Iterator[Finding]:
    if config.ray.cluster_address and not has_scheme(config.run) and not config.run.startswith("/"):
        yield note(
            AREA,
            "run",
            f"{config.run!r} is a relative path, and the stages run on a cluster",
            "all nodes must see it under the same path: give a shared folder or a URI with --run",
        )
    if config.serve.host not in ("127.0.0.1", "localhost", "::1"):
        reachable = f"jsfree serve would listen on {config.serve.host}, which other machines can reach"
        if config.serve.no_auth:
            access = "with no_auth and without API keys, all of them can use the models"
            remedy = "make a key with `jsfree serve keys add NAME`, or use a gateway that checks callers"
        else:
            access = "every request then needs an API key"
            remedy = "make a key with `jsfree serve keys add NAME`"
        yield note(AREA, "serve.host", f"{reachable}; {access}", remedy)
