"""A round under way: what every stage is given, and how a stage is skipped, resumed or run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import pyarrow as pa

from jsfree.config import Resources, RunConfig
from jsfree.errors import StorageError
from jsfree.run.folder import Folder
from jsfree.run.record import record_progress, record_stage
from jsfree.run.run import Manifest, Run
from ray_jobs.cluster.capacity import check_capacity
from ray_jobs.cluster.nodes import add_new_nodes
from ray_jobs.cluster.session import Cluster
from ray_jobs.commands.console import Reporter
from ray_jobs.shards.progress import Counts, Figures, Gauges, Show, harmless
from ray_jobs.shards.runner import ShardedStage, StageClass, Table, run_shards, total

NOTE_SECONDS = 10.0
"""Between two notes of a stage's progress in ``run.json``."""


@dataclass(frozen=True)
class Model:
    """A captioner of the run: m0 (the seed), m1, ..., where it is, and a fingerprint of how it came to be."""

    name: str
    ref: str
    fingerprint: str


@dataclass(frozen=True)
class StageRequest:
    """A stage class of round ``number`` to be run over the shards of ``source``."""

    number: int
    name: str
    fingerprint: str
    source: Folder
    source_schema: pa.Schema
    schema: pa.Schema
    build: Callable[..., StageClass]
    arguments: Mapping[str, Any]
    resources: Resources
    at_once: int = 2
    """Shards that a replica has under way."""
    beside: StageRequest | None = None
    """The stage whose work its class does too."""


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

    def fingerprint(self, *parts: str) -> str:
        """Hash of what a stage depends on: fingerprints of earlier stages and of its settings."""
        return hashlib.sha256("\0".join((str(self.number), *parts)).encode()).hexdigest()[:16]

    def once(self, name: str, fingerprint: str, work: Callable[[], Manifest]) -> Manifest:
        """Do a stage unless it is done; say what came of it.

        Raises:
            RunError: the stage was made from other inputs.
        """
        done = self.run.begin(self.number, name, fingerprint)
        if done is not None:
            self._tell(name, done, "done before")
            return done
        started = time.monotonic()
        record_stage(self.run, self.number, name, "running", self.cluster.nodes)
        manifest = work()
        manifest = replace(manifest, fingerprint=fingerprint, seconds=time.monotonic() - started)
        self._tell(name, self._finish(self.number, name, manifest), "")
        return manifest

    def sharded(self, title: str, requests: Sequence[StageRequest]) -> list[Manifest]:
        """Run stage classes over shards, those that need running in one pass; their manifests.

        Raises:
            RunError: a stage was made from other inputs.
            StageError: a stage failed.
        """
        done = {request.name: self.run.begin(request.number, request.name, request.fingerprint) for request in requests}
        waiting = {request.name: self._placed(request) for request in requests if done[request.name] is None}
        started = time.monotonic()
        fresh = {name: number for name, stage in waiting.items() if (number := len(stage.missing()))}
        missing = sum(fresh.values())
        if missing:
            resources = requests[0].resources
            self.claim(title, resources, min(resources.min_replicas or resources.replicas, missing))
            rows = sum(Folder(stage.source).count_rows() for stage in waiting.values())
            running = [request for request in requests if request.name in waiting]
            for request in running:
                if request.beside is not None:
                    self.run.begin(request.beside.number, request.beside.name, request.beside.fingerprint)
                record_stage(self.run, request.number, request.name, "running", self.cluster.nodes)
            with self.reporter.counting(title) as show:
                told = self._telling(title, running, show)
                run_shards(list(waiting.values()), self.cluster.board, Counts(rows), told)
        wall = time.monotonic() - started
        totals = {name: total(name, stage.target, self.config.max_failed_fraction) for name, stage in waiting.items()}
        for stage in waiting.values():
            Folder(stage.attempts).remove()
            for table in filter(None, (stage.target, stage.beside)):
                Folder(table.uri).remove_partial_files()
                Folder(table.errors).remove_partial_files()
        work = sum(manifest.device_seconds for manifest in totals.values()) or 1.0
        manifests = []
        for request in requests:
            manifest = done[request.name]
            if manifest is None:
                part = totals[request.name]
                # The wall time of a shared pass is shared out by the work in it.
                seconds = wall * part.device_seconds / work if request.name in fresh else 0.0
                manifest = replace(part, fingerprint=request.fingerprint, seconds=seconds)
                self._finish(request.number, request.name, manifest)
            self._tell(request.name, manifest, "done before" if request.name not in waiting else "")
            manifests.append(manifest)
        return manifests

    def _telling(self, title: str, running: Sequence[StageRequest], show: Show) -> Show:
        """Show figures to a person, to Ray's metrics, and now and then in ``run.json``."""
        noted = [time.monotonic()]
        gauges = cache(lambda: Gauges(self.run.folder.uri, title))

        def note(figures: Figures) -> None:
            if time.monotonic() - noted[0] >= NOTE_SECONDS:
                noted[0] = time.monotonic()
                with suppress(StorageError):  # the stage itself will say what is wrong with the run's folder
                    record_progress(self.run, [(request.number, request.name) for request in running], asdict(figures))

        displays = [
            harmless(show, "progress"),
            harmless(lambda figures: gauges().set(figures), "progress among Ray's metrics"),
            harmless(note, "progress in run.json"),
        ]

        def tell(figures: Figures) -> None:
            for display in displays:
                display(figures)

        return tell

    def claim(self, stage: str, resources: Resources, replicas: int) -> None:
        """Have a Ray session with room for so many replicas, or one that may grow until it has.

        Raises:
            StageError: the cluster neither has the room nor can come to have it.
        """
        self.cluster.ensure()
        waiting = check_capacity(stage, resources, replicas, fixed=self.cluster.is_local)
        if waiting:
            self.reporter.say(f"  {waiting}")

    def _finish(self, number: int, name: str, manifest: Manifest) -> Manifest:
        """Publish the manifest of a stage, and enter it and the nodes that are there in ``run.json``."""
        self.run.finish(number, name, manifest)
        add_new_nodes(self.cluster.nodes)
        record_stage(self.run, number, name, manifest, self.cluster.nodes)
        return manifest

    def _placed(self, request: StageRequest) -> ShardedStage:
        return ShardedStage(
            name=request.name,
            source=request.source.uri,
            source_schema=request.source_schema,
            target=self._table(request),
            build=request.build,
            arguments=request.arguments,
            resources=request.resources,
            attempts=(self.run.round(request.number) / "attempts" / request.name).uri,
            at_once=request.at_once,
            beside=None if request.beside is None else self._table(request.beside),
        )

    def _table(self, request: StageRequest) -> Table:
        round_folder = self.run.round(request.number)
        return Table((round_folder / request.name).uri, request.schema, (round_folder / "errors" / request.name).uri)

    def _tell(self, name: str, manifest: Manifest, note: str) -> None:
        failed = f", {manifest.rows_failed} failed" if manifest.rows_failed else ""
        if "excluded" in manifest.facts:
            failed += f", {manifest.facts['excluded']} excluded"
        cost = note or f"{manifest.seconds:.1f} s"
        self.reporter.say(f"  {name:<24} {manifest.rows_out:>6} rows{failed}  {cost}")
