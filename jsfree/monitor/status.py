"""The state of a run: its stages with progress, its nodes, its failed rows, its training, and its newest pairs.

Everything comes from ``run.json``, the lease, the step log and the shards, so that a run is described in the same way
while it works, on a cluster behind a URI, and after it has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jsfree.monitor.newest import NewestPair, newest_pairs
from jsfree.monitor.training import TrainingStatus, training_status
from jsfree.report import reading
from jsfree.report.reading import Failure
from jsfree.run.folder import Folder
from jsfree.run.lease import Holder, holder
from jsfree.run.record import read_record
from jsfree.run.run import Run
from jsfree.run.stages import PARTS, manifests_of_round, part_of

RUNNING, INTERRUPTED, WAITING, UNFINISHED, DONE = "running", "interrupted", "waiting", "unfinished", "done"
SOURCES = {
    "evaluation_hashes": "evaluation",
    "pairs": "samples",
    "scored": "pairs",
    "likelihoods": "pairs",
    "selected": "scored",
    "captions": "evaluation",
    "captions_scored": "evaluation",
}
"""The part whose shards each part reads, one for one."""


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """Progress of one stage of one round.

    ``status`` is ``waiting``, ``running``, ``unfinished`` (begun, and no driver works on it) or ``done``. Rows of a
    running stage are those of its pass, which may do several stages; shards are its own. None where it is not known.
    """

    round: int
    name: str
    label: str
    status: str
    rows: int | None = None
    rows_total: int | None = None
    rows_failed: int = 0
    shards: int | None = None
    shards_total: int | None = None
    rows_per_second: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    """Wall time of a finished stage."""
    seconds_remaining: float | None = None
    replicas: int | None = None
    reused_from: str = ""

    @property
    def share(self) -> float | None:
        """The finished share of the stage, between 0 and 1; None if it is not known."""
        if self.status == DONE:
            return 1.0
        for done, total in ((self.shards, self.shards_total), (self.rows, self.rows_total)):
            if done is not None and total:
                return min(1.0, done / total)
        return None


@dataclass(frozen=True)
class NodeStatus:
    """A node that has worked on the run."""

    host: str
    cpus: float
    gpus: float
    memory_gib: float | None
    accelerators: list[str]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The state of a run.

    ``state`` is ``running``, ``interrupted`` (recorded as running, but no driver renews the lease), ``done``,
    ``failed``, ``stopped`` or ``new`` (nothing was recorded yet).
    """

    uri: str
    state: str
    error: str
    created: str
    command: str
    hardware: str
    driver: str
    """Who holds the run's lease; empty if nobody does."""
    rounds: int
    rounds_done: int
    stages: list[StageStatus]
    nodes: list[NodeStatus]
    failures: list[Failure]
    training: TrainingStatus | None
    pairs: list[NewestPair]

    def as_json(self) -> dict[str, Any]:
        """The status as JSON data, with the finished share of each stage."""
        stages = [{**asdict(stage), "share": stage.share} for stage in self.stages]
        return {**asdict(self), "stages": stages}


def read_status(run: Run, *, pairs: int = 3, pictures: bool = False) -> RunStatus:
    """Read the state of a run.

    Args:
        pairs: number of newest pairs to read.
        pictures: whether the pairs include their images as ``data:`` URIs.

    Raises:
        StorageError: the folder cannot be read, or a file in it is damaged.
    """
    record, held = read_record(run), holder(run.folder)
    state = run_state(record, held)
    training = training_status(run)
    return RunStatus(
        uri=run.folder.uri,
        state=state,
        error=record.get("error", ""),
        created=record.get("created", ""),
        command=record.get("command", ""),
        hardware=record.get("hardware", ""),
        driver=str(held) if held else "",
        rounds=run.config.rounds,
        rounds_done=record.get("rounds_done", 0),
        stages=_stages(run, record.get("stages", {}), training, is_running=state == RUNNING),
        nodes=[_node(entry) for entry in record.get("nodes", {}).values()],
        failures=reading.failures(run, run.rounds()),
        training=training,
        pairs=newest_pairs(run, pairs, pictures=pictures),
    )


def run_state(record: Mapping[str, Any], held: Holder | None) -> str:
    """The state of a run, from its ``run.json`` and the holder of its lease."""
    status = str(record.get("status", "new"))
    return INTERRUPTED if status == RUNNING and held is None else status


def _stages(
    run: Run, recorded: Mapping[str, Mapping[str, Any]], training: TrainingStatus | None, *, is_running: bool
) -> list[StageStatus]:
    """The stages of all rounds in the order in which they run; those that are not planned only if they were begun."""
    found = []
    begun = run.rounds()
    for number in range(1, max([run.config.rounds, *begun]) + 1):
        planned = manifests_of_round(number, run.config.evaluate.modes)
        if number not in begun:
            found += [StageStatus(**_named(number, name), status=WAITING) for name in sorted(planned, key=_order)]
            continue
        entries = recorded.get(f"round-{number}", {})
        for name in sorted({*planned, *_optional(run.round(number)), *entries}, key=_order):
            found.append(_stage(run, number, name, entries.get(name, {}), training, is_running=is_running))
    return found


def _optional(folder: Folder) -> list[str]:
    """The optional parts that a round has begun."""
    present = set(folder.folders())
    return [part.name for part in PARTS.values() if part.optional and part.name in present]


def _order(name: str) -> tuple[int, str]:
    part = part_of(name)
    return (list(PARTS).index(part.name) if part else len(PARTS), name)


def _stage(
    run: Run,
    number: int,
    name: str,
    entry: Mapping[str, Any],
    training: TrainingStatus | None,
    *,
    is_running: bool,
) -> StageStatus:
    common = _named(number, name)
    if entry.get("status") == DONE:
        return _finished(common, entry)
    manifest = run.manifest(number, name)
    if manifest is not None:  # finished, and not yet or no longer recorded in run.json
        return _finished(common, asdict(manifest))
    if name == "train" and training is not None and training.round == number:
        status = RUNNING if is_running else UNFINISHED
        return StageStatus(
            **common,
            status=status,
            rows=training.step,
            rows_total=training.steps,
            seconds_remaining=training.seconds_remaining if is_running else None,
        )
    shards = _shards(run, number, name)
    if not shards and entry.get("status") is None:
        return StageStatus(**common, status=WAITING)
    progress = entry.get("progress", {}) if is_running else {}
    return StageStatus(
        **common,
        status=RUNNING if is_running else UNFINISHED,
        rows=progress.get("rows"),
        rows_total=progress.get("rows_in_all"),
        rows_failed=progress.get("rows_failed", 0),
        shards=shards,
        shards_total=_source_shards(run, number, name),
        rows_per_second=progress.get("rows_per_second"),
        tokens_per_second=progress.get("tokens_per_second"),
        seconds_remaining=progress.get("seconds_left"),
        replicas=progress.get("actors"),
    )


def _named(number: int, name: str) -> dict[str, Any]:
    """The fields that identify a stage."""
    part = part_of(name)
    return {"round": number, "name": name, "label": part.label if part else ""}


def _finished(common: Mapping[str, Any], entry: Mapping[str, Any]) -> StageStatus:
    return StageStatus(
        **common,
        status=DONE,
        rows=entry.get("rows_out"),
        rows_total=entry.get("rows_in"),
        rows_failed=entry.get("rows_failed", 0),
        rows_per_second=entry.get("rows_per_second"),
        tokens_per_second=entry.get("tokens_per_second"),
        seconds=entry.get("seconds"),
        reused_from=entry.get("reused_from", ""),
    )


def _shards(run: Run, number: int, name: str) -> int:
    return len(run.stage(number, name).shards())


def _source_shards(run: Run, number: int, name: str) -> int | None:
    """Number of shards of the part that a stage reads, which is also its own number of shards once it is done."""
    source = SOURCES.get(name.partition("/")[0])
    if source is None:
        return None
    return _shards(run, 1 if source == "evaluation" else number, source) or None


def _node(entry: Mapping[str, Any]) -> NodeStatus:
    resources = entry.get("resources", {})
    return NodeStatus(
        entry.get("host", ""),
        resources.get("CPU", 0.0),
        resources.get("GPU", 0.0),
        entry.get("memory_gib"),
        list(entry.get("accelerators", [])),
    )
