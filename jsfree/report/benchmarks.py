"""The section of the field's benchmarks: a table a suite, from ``<run>/evaluation/<model>/<suite>.json``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsfree.evaluation.metrics import MISSING, Metric
from jsfree.run.run import Run

FOLDER = "evaluation"
SIGNIFICANT = 0.05
_MODEL = re.compile(r"m(\d+)")


@dataclass(frozen=True)
class BenchmarkCell:
    """A metric of a model, formatted; ``differs``: significantly from the first model."""

    value: str
    interval: str
    differs: bool


@dataclass(frozen=True)
class BenchmarkLine:
    """A metric of all models."""

    metric: Metric
    cells: list[BenchmarkCell]


@dataclass(frozen=True)
class BenchmarkView:
    """The results of a suite: ``protocol`` has its settings, and ``counts`` those of the first model."""

    title: str
    source: str
    models: list[str]
    protocol: dict[str, Any]
    generation: dict[str, Any]
    notes: list[str]
    counts: dict[str, int]
    lines: list[BenchmarkLine]


def benchmark_views(run: Run) -> list[BenchmarkView]:
    """The results of all suites in a run, by title; empty if no benchmark was run.

    Raises:
        StorageError: a result cannot be read.
    """
    folder = run.folder / FOLDER
    numbered = sorted((int(match[1]), match[0]) for match in map(_MODEL.fullmatch, folder.folders()) if match)
    by_suite: dict[str, dict[str, dict[str, Any]]] = {}
    for _, model in numbered:
        for name in (folder / model).names():
            if name.endswith(".json"):
                by_suite.setdefault(name, {})[model] = (folder / model).read_json(name)
    return sorted((_view(results) for results in by_suite.values()), key=lambda view: view.title)


def _view(results: Mapping[str, Mapping[str, Any]]) -> BenchmarkView:
    models = list(results)
    first = results[models[0]]
    metrics = [Metric(**described) for described in first["described_metrics"]]
    lines = [
        BenchmarkLine(metric, [_cell(result, metric, models[0]) for result in results.values()])
        for metric in metrics
        if not metric.secondary
    ]
    return BenchmarkView(
        first["title"],
        first["source"],
        models,
        first["protocol"],
        first["generation"],
        list(dict.fromkeys(note for result in results.values() for note in result["notes"])),
        first["counts"],
        lines,
    )


def _cell(result: Mapping[str, Any], metric: Metric, first: str) -> BenchmarkCell:
    estimate = result["metrics"].get(metric.name, {})
    value, low, high = (metric.format(estimate.get(key)) for key in ("value", "low", "high"))
    p = result["differences"].get(first, {}).get(metric.name, {}).get("p")
    interval = MISSING if value == MISSING else f"{low} to {high}"
    return BenchmarkCell(value, interval, p is not None and math.isfinite(p) and p < SIGNIFICANT)
