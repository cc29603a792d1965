"""A round of a run: the inputs of its stages, and how a stage is skipped, resumed or run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache

import pyarrow as pa

from jsfree.config import Resources, RunConfig
from jsfree.errors import StorageError
from jsfree.run import reuse
from jsfree.run.folder import Folder
from jsfree.run.record import record_progress, record_stage
from jsfree.run.run import INPUTS, Manifest, Run
from ray_jobs.cluster.capacity import check_capacity
from ray_jobs.cluster.nodes import add_new_nodes
from ray_jobs.cluster.session import Cluster
from ray_jobs.commands.console import Reporter
from ray_jobs.shards.actor import ShardedStage
from ray_jobs.shards.progress import Counts, Figures, Gauges, Show, harmless
from ray_jobs.shards.runner import run_shards
from ray_jobs.shards.tables import Table, total_manifest

RECORD_SECONDS = 10.0
"""Time between two updates of a stage's progress in ``run.json``."""
WAIT_SECONDS = 2.0
"""Time between two looks at a stage that another run is making."""


@dataclass(frozen=True)
class Model:
    """A captioner of the run: its name (m0 is the seed), its reference, and a hash of everything it was made from."""

    name: str
    ref: str
    fingerprint: str


@dataclass(frozen=True)
class Round:
    """Round ``number`` of a run, which improves the model ``start``; ``seed`` is m0."""

    run: Run
    number: int
    seed: Model
    start: Model
    cluster: Cluster
    reporter: Reporter

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.run.config

    def stage(self, name: str) -> Folder:
        """The folder of a stage of this round."""
        return self.run.stage(self.number, name)

    def errors(self, name: str) -> Folder:
        """The folder of the rows that failed in a stage of this round."""
        return self.run.errors(self.number, name)

    def table(self, name: str, schema: pa.Schema) -> Table:
        """The table that a stage of this round writes."""
        return Table(self.stage(name).uri, schema, self.errors(name).uri)

    def attempts(self, name: str) -> str:
        """The folder of the records of shards that a stage of this round has begun."""
        return (self.run.round(self.number) / "attempts" / name).uri

    def fingerprint(self, *parts: str) -> str:
        """Hash of the fingerprints of earlier stages and settings that a stage depends on."""
        return hashlib.sha256("\0".join((str(self.number), *parts)).encode()).hexdigest()[:16]

    def begin(self, name: str, fingerprint: str, number: int | None = None) -> Manifest | None:
        """Begin a stage of this or another round, or take it from a run of ``reuse`` that has finished it.

        Waits while such a run is making the stage. Returns the manifest if the stage is finished.

        Raises:
            RunError: the stage was made from other inputs.
        """
        number, run = number or self.number, self.run
        if run.config.reuse and not run.stage(number, name).exists(INPUTS):
            self._wait(number, name, fingerprint)
        done = run.begin(number, name, fingerprint)
        source = reuse.find_finished(run, number, name, fingerprint) if done is None else None
        if source is not None:
            done = reuse.take(run, number, name, source)
            record_stage(run, number, name, done, {})
        return done

    def _wait(self, number: int, name: str, fingerprint: str) -> None:
        """Wait while a run of ``reuse`` is making a stage from the same inputs."""
        told = ""
        while (other := reuse.find_unfinished(self.run, number, name, fingerprint)) is not None:
            if other.folder.uri != told:
                told = other.folder.uri
                self.reporter.say(f"  {name:<28} waits for the same stage of {told}")
            time.sleep(WAIT_SECONDS)

    def complete(self, name: str, fingerprint: str, work: Callable[[], Manifest]) -> Manifest:
        """Run a stage on the driver unless it is done; return its manifest.

        Raises:
            RunError: the stage was made from other inputs.
        """
        done = self.begin(name, fingerprint)
        if done is not None:
            self._print(name, done)
            return done
        started = time.monotonic()
        record_stage(self.run, self.number, name, "running", self.cluster.nodes)
        manifest = replace(work(), fingerprint=fingerprint, seconds=time.monotonic() - started)
        self._publish(self.number, name, manifest)
        self._print(name, manifest, f"{manifest.seconds:.1f} s")
        return manifest

    def complete_sharded(self, title: str, stages: Sequence[ShardedStage]) -> dict[str, Manifest]:
        """Run stage classes over shards, all unfinished ones in one pass; return the manifests by stage.

        Raises:
            RunError: a stage was made from other inputs.
            StageError: a stage failed.
        """
        manifests = {stage.name: self.begin(stage.name, stage.fingerprint, stage.number) for stage in stages}
        unfinished = [stage for stage in stages if manifests[stage.name] is None]
        missing = {stage.name: len(stage.missing()) for stage in unfinished}
        started = time.monotonic()
        if any(missing.values()):
            self._run_pass(title, unfinished, sum(missing.values()))
        wall = time.monotonic() - started
        totals = {
            stage.name: total_manifest(stage.name, stage.target, self.config.max_failed_fraction)
            for stage in unfinished
        }
        device_seconds = sum(manifest.device_seconds for manifest in totals.values()) or 1.0
        finished: dict[str, Manifest] = {}
        for stage in stages:
            manifest = manifests[stage.name]
            if manifest is not None:
                self._print(stage.name, manifest)
            else:
                stage.remove_leftovers()
                manifest = totals[stage.name]
                # The wall time of a pass is divided among its stages in proportion to their device time.
                seconds = wall * manifest.device_seconds / device_seconds if missing[stage.name] else 0.0
                manifest = replace(manifest, fingerprint=stage.fingerprint, seconds=seconds)
                self._publish(stage.number, stage.name, manifest)
                self._print(stage.name, manifest, f"{manifest.seconds:.1f} s")
            finished[stage.name] = manifest
        return finished

    def _run_pass(self, title: str, stages: Sequence[ShardedStage], missing: int) -> None:
        """Make the ``missing`` shards of stages, with figures on the console, in metrics and in ``run.json``."""
        resources = stages[0].resources
        self.reserve(title, resources, min(resources.min_replicas or resources.replicas, missing))
        for stage in stages:
            if (second := stage.second_stage) is not None:
                self.run.begin(second.number, second.name, second.fingerprint)
            record_stage(self.run, stage.number, stage.name, "running", self.cluster.nodes)
        rows = sum(Folder(stage.source).count_rows() for stage in stages)
        with self.reporter.counting(title) as show:
            run_shards(stages, self.cluster.board, Counts(rows), self._displays(title, stages, show))

    def _displays(self, title: str, stages: Sequence[ShardedStage], show: Show) -> Show:
        """A function that shows figures with ``show``, as Ray metrics, and now and then in ``run.json``."""
        recorded = time.monotonic()
        gauges = cache(lambda: Gauges(self.run.folder.uri, title))

        def record(figures: Figures) -> None:
            nonlocal recorded
            if time.monotonic() - recorded >= RECORD_SECONDS:
                recorded = time.monotonic()
                with suppress(StorageError):  # the stage itself reports problems with the run's folder
                    record_progress(self.run, [(stage.number, stage.name) for stage in stages], asdict(figures))

        displays = [
            harmless(show, "progress"),
            harmless(lambda figures: gauges().set(figures), "progress in Ray's metrics"),
            harmless(record, "progress in run.json"),
        ]

        def show_all(figures: Figures) -> None:
            for display in displays:
                display(figures)

        return show_all

    def reserve(self, stage: str, resources: Resources, replicas: int) -> None:
        """Start the Ray session and check that it has, or can grow to, capacity for ``replicas``.

        Raises:
            StageError: the cluster cannot have that capacity.
        """
        self.cluster.ensure()
        waiting = check_capacity(stage, resources, replicas, fixed=self.cluster.is_local)
        if waiting:
            self.reporter.say(f"  {waiting}")

    def _publish(self, number: int, name: str, manifest: Manifest) -> None:
        """Publish the manifest of a stage, and record it and the nodes of the cluster in ``run.json``."""
        self.run.finish(number, name, manifest)
        add_new_nodes(self.cluster.nodes)
        record_stage(self.run, number, name, manifest, self.cluster.nodes)

    def _print(self, name: str, manifest: Manifest, note: str = "") -> None:
        """Print a finished stage; without a ``note``, how it was finished before."""
        failed = f", {manifest.rows_failed} failed" if manifest.rows_failed else ""
        if "excluded" in manifest.facts:
            failed += f", {manifest.facts['excluded']} excluded"
        before = f"from {manifest.reused_from}" if manifest.reused_from else "done before"
        self.reporter.say(f"  {name:<28} {manifest.rows_out:>6} rows{failed}  {note or before}")
