"""Tables of ``jsfree benchmark``: results of models with their intervals, and what the suites need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from jsfree.evaluation.benchmarks.base import Suite
from jsfree.evaluation.benchmarks.results import measures_of
from jsfree.evaluation.metrics import Metric

SIGNIFICANT = 0.05


def heading(suite: Suite, results: Mapping[str, Mapping[str, Any]]) -> str:
    """What a table of results shows."""
    counts = next(iter(results.values()))["counts"]
    note = "; * differs from the first model (p < 0.05, paired)" if len(results) > 1 else ""
    answers = f"{counts['answers']} answers about {counts['images']} images"
    return f"{suite.title}: {answers}; %, counts per answer, 95 % intervals{note}"


def results_table(suite: Suite, results: Mapping[str, Mapping[str, Any]]) -> Table:
    """The metrics of models; a star marks those that differ from the first model (p < 0.05, paired)."""
    table = Table()
    table.add_column("", no_wrap=True)
    for model in results:
        table.add_column(model, justify="right")
    first = next(iter(results))
    for measure in measures_of(suite):
        if not measure.metric.secondary:
            cells = [_cell(result, measure.metric, first) for result in results.values()]
            table.add_row(measure.metric.label, *cells)
    failed = [f"{result['counts']['failed'] + result['counts']['not_scored']}" for result in results.values()]
    if any(count != "0" for count in failed):
        table.add_row("Failed", *failed)
    return table


def _cell(result: Mapping[str, Any], metric: Metric, first: str) -> Text:
    estimate = result["metrics"][metric.name]
    value, low, high = (metric.format(estimate[key]) for key in ("value", "low", "high"))
    p = result["differences"].get(first, {}).get(metric.name, {}).get("p")
    star = "*" if p is not None and p < SIGNIFICANT else ""
    return Text.assemble(f"{value}{star} ", (f"{low}-{high}", "dim"))


def requirements_table(suites: Sequence[Suite], data: Path | None) -> Table:
    """The files of suites, with their origin, and whether the data folder has them."""
    table = Table(title="Files of the benchmarks", title_justify="left")
    for column in ("suite", "file", "what it holds", "from"):
        table.add_column(column, no_wrap=column == "suite")
    if data is not None:
        table.add_column("found", no_wrap=True)
    for suite in suites:
        for requirement in suite.requirements:
            note = " (optional)" if requirement.optional else ""
            row = [suite.name, requirement.name.replace("|", " or "), requirement.meaning + note, requirement.origin]
            if data is not None:
                row.append("yes" if requirement.find(data) else "no")
            table.add_row(*row)
    return table
