"""Stage 3: preference pairs sorted by gap and cut into splits, of which a moderate range is kept; on the driver."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jsfree.config import RunConfig
from jsfree.gpus import device_of
from jsfree.models.clip import load_clip
from jsfree.models.clip_text import TextEncoder
from jsfree.run.run import Manifest
from jsfree.stages.coverage_selection import CandidateTable, CoverageSelection, Verification, fit
from jsfree.stages.shard_selection import select_shards
from ray_jobs.cluster.failures import unwrap_errors
from ray_jobs.rounds import Round
from ray_jobs.stages.score import needs_likelihoods


def select_pairs(current: Round, scored: Manifest) -> Manifest:
    """Preference pairs of the round (paper, section 3.4, "splits"), by the strategy ``select.strategy``."""
    config = current.config

    def work() -> Manifest:
        if config.select.strategy == "coverage":
            facts = _select_by_coverage(current)
        else:
            source, target = current.stage("scored"), current.stage("selected")
            scorers = len(config.clip.scorers)
            facts = select_shards(source, target, config.select, config.seed, config.shard_rows, scorers).facts
        return Manifest(rows_in=facts["pairs"], rows_out=facts["kept"], facts=facts)

    fingerprint = current.fingerprint(scored.fingerprint, config.fingerprint("seed", "select"))
    manifest = current.complete("selected", fingerprint, work)
    if "agreement" in manifest.facts:
        current.reporter.say(f"  {describe_agreement(manifest.facts)}")
    return manifest


def describe_agreement(facts: dict[str, Any]) -> str:
    """One line about the agreement of two scorers, from the facts of a selection."""
    found = facts["agreement"]
    kappa = "undefined" if found["kappa"] is None else f"{found['kappa']:.2f}"
    return (
        f"The scorers agree on {found['share'] or 0:.1%} of {found['pairs']} pairs (Cohen's kappa {kappa});"
        f" {facts['disagreed']} pairs on which they disagree were dropped."
    )


def _select_by_coverage(current: Round) -> dict[str, Any]:
    """Verify with the verifier that the first round fits, and select; return the facts."""
    config = current.config
    likelihoods = current.stage("likelihoods") if needs_likelihoods(config, current.number) else None
    candidates = CandidateTable(current.stage("scored"), likelihoods)
    is_first = current.number == 1
    if is_first:
        verification = fit(candidates, config.select, partial(_embed, current))
    else:
        verification = Verification.read(current.run.stage(1, "selected"))
    selection = CoverageSelection(candidates, verification, config.select, config.seed, current.number)
    return selection.write(current.stage("selected"), config.shard_rows)


def _embed(current: Round, words: Sequence[str]) -> NDArray[np.float32]:
    """CLIP embeddings of words: computed here, or on a node with GPUs if CLIP scores on GPUs."""
    config, resources = current.config, current.config.score.resources
    if not resources.gpus:
        return _embed_words(config, words)
    import ray

    current.cluster.ensure()
    # max_calls=1 ends the process, which frees the GPU memory that CUDA holds.
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_calls=1)(_embed_words)
    with unwrap_errors("selected"):
        vectors_WD: NDArray[np.float32] = ray.get(
            task.options(accelerator_type=resources.accelerator_type).remote(config, words)
        )
    return vectors_WD


def _embed_words(config: RunConfig, words: Sequence[str]) -> NDArray[np.float32]:
    clip = config.clip
    device = device_of(config.score.resources.gpus)
    encoder = TextEncoder(load_clip(clip.versioned_ref, device, clip.pretrained, config.models))
    vectors_WD: NDArray[np.float32] = encoder.encode(list(words))[0].numpy()
    return vectors_WD
