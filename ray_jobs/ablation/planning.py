"""Computes the fingerprints of all stages of a run without running it, to know which runs can share which stages.

The stages themselves compute them: they are called with a round that records fingerprints and does no work.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console

from jsfree.config import RunConfig
from jsfree.run.run import Manifest, Run
from jsfree.run.stages import LAST_STAGE, MODEL_STAGE
from ray_jobs.cluster.session import Cluster
from ray_jobs.commands.console import Reporter
from ray_jobs.pipeline import WORK, seed_model
from ray_jobs.rounds import Round
from ray_jobs.shards.actor import ShardedStage
from ray_jobs.stages.evaluate import caption_images

Stage = tuple[int, str]
"""Round and name of a stage."""


def plan_fingerprints(config: RunConfig) -> dict[Stage, str]:
    """The fingerprint of each stage that a run with this configuration makes, in order; reads and writes nothing."""
    fingerprints: dict[Stage, str] = {}
    seed = seed_model(config)
    reporter = Reporter(Console(file=io.StringIO()))
    first = PlannedRound(PlannedRun(config), 1, seed, seed, Cluster(config), reporter, fingerprints)
    model = seed
    for number in range(1, config.rounds + 1):
        current = replace(first, number=number, start=model)
        result = None
        for name, work in WORK.items():
            if name == LAST_STAGE:
                caption_images(current, model)
            else:
                result = work(current, result)
                model = result if name == MODEL_STAGE else model
    return fingerprints


class PlannedRun(Run):
    """A run whose stages all count as finished."""

    def manifest(self, number: int, stage: str) -> Manifest:  # noqa: ARG002
        """A manifest of any stage."""
        return Manifest(rows_in=1, rows_out=1)


@dataclass(frozen=True)
class PlannedRound(Round):
    """A round that records the fingerprints of its stages instead of running them."""

    fingerprints: dict[Stage, str] = field(default_factory=dict)

    def begin(self, name: str, fingerprint: str, number: int | None = None) -> Manifest:
        """Record a stage and return a manifest with its fingerprint."""
        self.fingerprints[number or self.number, name] = fingerprint
        return Manifest(fingerprint=fingerprint, rows_in=1, rows_out=1)

    def complete(self, name: str, fingerprint: str, work: Callable[[], Manifest]) -> Manifest:  # noqa: ARG002
        """Record a stage without doing its work."""
        return self.begin(name, fingerprint)

    def complete_sharded(self, title: str, stages: Sequence[ShardedStage]) -> dict[str, Manifest]:  # noqa: ARG002
        """Record stages without doing their work."""
        return {stage.name: self.begin(stage.name, stage.fingerprint, stage.number) for stage in stages}
