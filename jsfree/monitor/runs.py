"""The runs in a folder: the state of each, its rounds, and its metrics before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jsfree.errors import JsfreeError
from jsfree.evaluation.metrics import LABEL_FREE, TRUTH, Metric
from jsfree.monitor.status import DONE, RUNNING, UNFINISHED, run_state
from jsfree.report import reading
from jsfree.report.benchmarks import FOLDER as EVALUATION
from jsfree.report.tables import LABEL_FREE_TILES, TILES
from jsfree.run.folder import Folder
from jsfree.run.lease import holder
from jsfree.run.record import RECORD, read_record
from jsfree.run.run import CONFIG, Run

DEPTH = 3
"""Levels of folders that are searched for runs."""
UNREADABLE = "unreadable"
Measured = Mapping[str, float]
"""``{"value", "low", "high"}``."""


@dataclass(frozen=True)
class BeforeAfter:
    """A metric of m0 and of the run's result."""

    metric: str
    before: Measured
    after: Measured


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run in a list of runs.

    ``state`` is that of ``RunStatus``, or ``unreadable`` with the ``error``; ``stage`` is the stage in progress.
    ``metrics`` are of ``result`` and m0 in the evaluation mode ``mode``; all three are empty before the evaluation.
    """

    uri: str
    name: str
    state: str
    error: str = ""
    created: str = ""
    rounds: int = 0
    rounds_done: int = 0
    stage: str = ""
    result: str = ""
    mode: str = ""
    metrics: list[BeforeAfter] = field(default_factory=list)

    def metric(self, name: str) -> BeforeAfter | None:
        """The metric ``name``, if it was measured."""
        return next((each for each in self.metrics if each.metric == name), None)

    def as_json(self) -> dict[str, Any]:
        """The summary as JSON data."""
        return asdict(self)


def list_runs(folder: Folder) -> list[RunSummary]:
    """Summaries of the runs in ``folder`` and at most ``DEPTH`` levels below it, the newest first.

    A run that cannot be read is listed with the reason.

    Raises:
        StorageError: the folder cannot be listed.
    """
    found = [_summary(each, name) for name, each in _find(folder, "", DEPTH)]
    return sorted(found, key=lambda run: (run.created, run.name), reverse=True)


def _find(folder: Folder, name: str, depth: int) -> Iterator[tuple[str, Folder]]:
    """Yield the runs at and below a folder with their relative paths.

    Runs inside a run and the results of ``jsfree benchmark``, which are also a folder with a configuration, are not
    listed.
    """
    if folder.exists(CONFIG) and (folder.exists(RECORD) or any(n.startswith("round-") for n in folder.folders())):
        yield name or folder.uri, folder
    elif depth:
        for child in folder.folders():
            if not child.startswith(".") and child != EVALUATION:
                yield from _find(folder / child, f"{name}/{child}".lstrip("/"), depth - 1)


def _summary(folder: Folder, name: str) -> RunSummary:
    try:
        return _readable_summary(Run.existing(folder.uri), name)
    except JsfreeError as error:
        return RunSummary(uri=folder.uri, name=name, state=UNREADABLE, error=str(error))


def _readable_summary(run: Run, name: str) -> RunSummary:
    record = read_record(run)
    state = run_state(record, holder(run.folder))
    result, mode, metrics = result_metrics(run)
    return RunSummary(
        uri=run.folder.uri,
        name=name,
        state=state,
        error=record.get("error", ""),
        created=record.get("created", ""),
        rounds=run.config.rounds,
        rounds_done=record.get("rounds_done", 0),
        stage=_stage(record) if state != DONE else "",
        result=result,
        mode=mode,
        metrics=metrics,
    )


def _stage(record: Mapping[str, Any]) -> str:
    """The last stage that ``run.json`` records as not finished, such as ``round-1/pairs``."""
    open_stages = [
        f"{number}/{name}"
        for number, stages in record.get("stages", {}).items()
        for name, entry in stages.items()
        if entry.get("status") in (RUNNING, UNFINISHED)
    ]
    return open_stages[-1] if open_stages else ""


def result_metrics(run: Run) -> tuple[str, str, list[BeforeAfter]]:
    """The run's result, the first evaluation mode, and the main metrics, against labels if there are any.

    Raises:
        StorageError: a file of metrics cannot be read.
    """
    done = reading.evaluated_rounds(run)
    if not done:
        return "", "", []
    folder = run.round(done[-1])
    with_truth = folder.exists("metrics.json")
    measured = folder.read_json("metrics.json" if with_truth else "label_free.json")
    mode = next(iter(measured["after"]))
    before, after = (measured[when][mode] for when in ("before", "after"))
    names = TILES if with_truth else LABEL_FREE_TILES
    metrics = [BeforeAfter(name, before[name], after[name]) for name in names if name in before and name in after]
    return f"m{done[-1]}", mode, metrics


def measured_metrics(runs: list[RunSummary]) -> list[Metric]:
    """The metrics that any of the runs has, in the order of the metric tables."""
    known = {each.metric for run in runs for each in run.metrics}
    return [metric for metric in dict.fromkeys((*TRUTH, *LABEL_FREE)) if metric.name in known]
