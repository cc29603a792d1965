"""Tables of ``jsfree benchmark``: results of models with their intervals, and what the suites need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from jsfree.evaluation.benchmarks.base import Suite
from jsfree.evaluation.benchmarks.data_paths import DataPath
from jsfree.evaluation.metrics import Metric

SIGNIFICANT = 0.05
SuiteResults = tuple[Suite, Mapping[str, Mapping[str, Any]]]
"""A suite with its results by model."""


def legend(results: Sequence[SuiteResults]) -> str:
    """How a table of results is to be read."""
    models = list(dict.fromkeys(model for _, of_suite in results for model in of_suite))
    note = f"; * differs from {models[0]} (p < {SIGNIFICANT}, paired)" if len(models) > 1 else ""
    return f"%, or numbers per answer, with 95 % intervals{note}"


def results_table(results: Sequence[SuiteResults]) -> Table:
    """The metrics of models in all suites; a star marks those that differ from the first model (p < 0.05, paired)."""
    models = list(dict.fromkeys(model for _, of_suite in results for model in of_suite))
    table = Table()
    table.add_column("", no_wrap=True)
    for model in models:
        table.add_column(model, justify="right")
    for suite, of_suite in results:
        table.add_section()
        counts = next(iter(of_suite.values()))["counts"]
        answers = f"{counts['answers']} answers about {counts['images']} images"
        table.add_row(Text.assemble((f"{suite.title}: ", "bold"), (answers, "dim")))
        for row in _rows(of_suite, models):
            table.add_row(*row)
    return table


def _rows(results: Mapping[str, Mapping[str, Any]], models: Sequence[str]) -> Iterator[list[str | Text]]:
    first = next(iter(results))
    described = (Metric(**each) for each in results[first]["described_metrics"])
    for metric in described:
        if not metric.secondary and any(
            result["metrics"][metric.name]["value"] is not None for result in results.values()
        ):
            yield [metric.label, *(_cell(results[name], metric, first) if name in results else "" for name in models)]
    failed = [
        f"{results[name]['counts']['failed'] + results[name]['counts']['not_scored']}" if name in results else ""
        for name in models
    ]
    if any(count not in ("", "0") for count in failed):
        yield ["Failed", *failed]


def _cell(result: Mapping[str, Any], metric: Metric, first: str) -> Text:
    estimate = result["metrics"][metric.name]
    value, low, high = (metric.format(estimate[key]) for key in ("value", "low", "high"))
    p = result["differences"].get(first, {}).get(metric.name, {}).get("p")
    star = "*" if p is not None and p < SIGNIFICANT else ""
    return Text.assemble(f"{value}{star} ", (f"{low}-{high}", "dim"))


def requirements_table(suites: Sequence[Suite], data: DataPath | None) -> Table:
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
                row.append("yes" if requirement.find(suite.folder(data)) else "no")
            table.add_row(*row)
    return table
