"""Summarises the runs of an ablation: ``ablation.json``.

    {"name", "description", "base", "common", "jsfree", "seeds", "figure", "axes", "device_seconds",
     "device_seconds_unshared", "cells": {name: C}}
    C = {"settings", "labels", "runs": {seed: R}, "before": {mode: {metric: S}}, "after": {mode: {metric: S}}}
    R = {"run", "status", "error", "pairs", "before", "after", "stages", "seconds", "device_seconds"}
    S = {"mean", "min", "max"} over the seeds that are done

``before`` and ``after`` of a run are those of its result (the last finished round, or the last good one if a stop rule
ended the run), with 95 % intervals over images: the metrics with truth where the evaluation images have it, and all
label-free ones. ``stages`` holds the cost of each stage and, if the stage was taken from another run, which;
``seconds`` (wall time) and ``device_seconds`` are sums over the stages that the run made itself.
``device_seconds_unshared`` is what all runs would have taken without sharing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsfree
from jsfree.ablation.definition import METRICS, Ablation
from jsfree.evaluation.metrics import MISSING
from jsfree.evaluation.rounds_stop import good_rounds
from jsfree.report import reading
from jsfree.run.folder import Folder
from jsfree.run.record import read_record
from jsfree.run.run import CONFIG, Run
from jsfree.run.stages import LABEL_FREE
from jsfree.run.stages import METRICS as WITH_TRUTH

FILE = "ablation.json"
DONE = "done"
Summary = dict[str, Any]
"""The content of ``ablation.json``."""
Values = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Estimates by mode and metric."""


@dataclass(frozen=True)
class CellRun:
    """A cell's run with one seed: its folder below the ablation's, and why it failed, if it did."""

    cell: str
    seed: int
    path: str
    error: str = ""


def run_path(cell: str, seed: int) -> str:
    """The folder of a cell's run, relative to the folder of the ablation."""
    return f"cells/{cell}/seed-{seed}"


def summarise(ablation: Ablation, out: Folder, runs: Sequence[CellRun]) -> Summary:
    """Summarise runs of an ablation in the folder ``out``, as far as they are done; cells without runs are left out.

    Raises:
        StorageError: a file of a run cannot be read.
    """
    cells: dict[str, Any] = {}
    for cell in ablation.cells:
        of_cell = {str(run.seed): _run(out, run) for run in runs if run.cell == cell.name}
        if not of_cell:
            continue
        done = [run for run in of_cell.values() if run["status"] == DONE]
        cells[cell.name] = {
            "settings": cell.settings,
            "labels": dict(cell.labels),
            "runs": of_cell,
            "before": _over_seeds([run["before"] for run in done]),
            "after": _over_seeds([run["after"] for run in done]),
        }
    of_all = [run for cell in cells.values() for run in cell["runs"].values()]
    return {
        "name": ablation.name,
        "description": ablation.description,
        "base": ablation.base,
        "common": dict(ablation.common),
        "jsfree": jsfree.__version__,
        "seeds": sorted({run.seed for run in runs}),
        "axes": {axis: list(labels) for axis, labels in ablation.axes.items()},
        "figure": ablation.figure.model_dump(mode="json"),
        "device_seconds": sum(run["device_seconds"] for run in of_all),
        "device_seconds_unshared": sum(stage["device_seconds"] for run in of_all for stage in run["stages"].values()),
        "cells": cells,
    }


def describe_result(run: Run, metrics: Sequence[str], mode: str | None) -> str:
    """The metrics of a finished run before and after in one line, such as ``Recall 88.1 → 82.9 %``."""
    measured = _measured(run)
    if not measured["before"]:
        return ""
    mode = mode or next(iter(measured["before"]))
    parts = []
    for name in metrics:
        values = [measured[when].get(mode, {}).get(name, {}).get("value") for when in ("before", "after")]
        if None not in values:
            before, after = (METRICS[name].format(value) for value in values)
            parts.append(f"{METRICS[name].label} {before} → {after} {METRICS[name].unit}".rstrip())
    return f"{mode}: " + (", ".join(parts) or MISSING)


def _run(out: Folder, cell_run: CellRun) -> dict[str, Any]:
    """The results and costs of one run."""
    folder = out / cell_run.path
    if not folder.exists(CONFIG):
        return _entry(cell_run, "failed" if cell_run.error else "not started")
    run = Run.existing(folder.uri)
    status = str(read_record(run).get("status", "stopped"))
    return _entry(cell_run, "failed" if cell_run.error else status, run)


def _entry(cell_run: CellRun, status: str, run: Run | None = None) -> dict[str, Any]:
    stages = _stages(run) if run else {}
    own = [stage for stage in stages.values() if not stage["reused_from"]]
    selected = run.manifest(1, "selected") if run else None
    return {
        "run": cell_run.path,
        "status": status,
        **({"error": cell_run.error} if cell_run.error else {}),
        "pairs": selected.rows_out if selected else None,
        **(_measured(run) if run else {"before": {}, "after": {}}),
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in own),
        "device_seconds": sum(stage["device_seconds"] for stage in own),
    }


def _stages(run: Run) -> dict[str, dict[str, Any]]:
    """Cost of each finished stage, by round and name; ``reused_from`` is empty for stages that the run made."""
    return {
        f"round-{cost.round}/{cost.stage}": {
            "rows": cost.manifest.rows_out,
            "seconds": cost.manifest.seconds,
            "device_seconds": cost.manifest.device_seconds,
            "tokens": cost.manifest.tokens,
            "reused_from": cost.manifest.reused_from,
        }
        for cost in reading.costs(run, run.rounds())
    }


def _measured(run: Run) -> dict[str, dict[str, dict[str, Any]]]:
    """All metrics of the run's result, ``before`` and ``after``, by mode: of the last round, or the last good one."""
    merged: dict[str, dict[str, dict[str, Any]]] = {"before": {}, "after": {}}
    done = good_rounds(run, [number for number in run.rounds() if run.round(number).exists(LABEL_FREE)])
    for file in (LABEL_FREE, WITH_TRUTH) if done else ():
        if run.round(done[-1]).exists(file):
            content = run.round(done[-1]).read_json(file)
            for when, modes in merged.items():
                for mode, values in content[when].items():
                    modes.setdefault(mode, {}).update(values)
    return merged


def _over_seeds(runs: Sequence[Values]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and range over runs of each metric, by mode, for the modes and metrics that all runs have."""
    first = runs[0] if runs else {}
    return {
        mode: {
            metric: _spread([run[mode][metric]["value"] for run in runs])
            for metric in first[mode]
            if all(metric in run[mode] for run in runs)
        }
        for mode in first
        if all(mode in run for run in runs)
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}
