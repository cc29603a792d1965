"""A run's metrics before and after, as a table or as JSON."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jsfree.evaluation.metrics import LABEL_FREE, TRUTH, Metric
from jsfree.evaluation.rounds_stop import good_rounds
from jsfree.run.run import Run


def show_metrics(run: Run, console: Console, as_json: bool, number: int | None = None) -> None:
    """Print the metrics of a round: against labels if there are any, else label-free.

    Args:
        number: the round; by default that of the run's result, which is the last one unless a stop rule ended the run.
    """
    rounds = good_rounds(run, range(1, run.config.rounds + 1)) if number is None else [number]
    done = [number for number in rounds if run.round(number).exists("label_free.json")]
    if not done:
        return
    folder = run.round(done[-1])
    name = "metrics.json" if folder.exists("metrics.json") else "label_free.json"
    measured = folder.read_json(name)
    if as_json:
        typer.echo(json.dumps(measured, indent=2))
    else:
        console.print(_table(measured, f"m{done[-1]}"))


def _table(measured: dict[str, Any], after: str) -> Table:
    modes, (metrics, count) = list(measured["before"]), _layout(measured)
    table = Table(
        title=f"Before (m0) and after ({after}) on {count} images: %, counts per caption, CLIP cosine × 100;"
        " 95 % intervals",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for mode in modes:
        table.add_column(f"{mode}: m0", justify="right")
        table.add_column(f"{mode}: {after}", justify="right")
    for metric in metrics:
        if not metric.secondary and metric.name in measured["before"][modes[0]]:  # older runs have fewer
            estimates = [measured[when][mode][metric.name] for mode in modes for when in ("before", "after")]
            table.add_row(metric.label, *(_cell(estimate, metric) for estimate in estimates))
    return table


def _layout(measured: dict[str, Any]) -> tuple[tuple[Metric, ...], int]:
    """The metrics in a file, and the number of its images."""
    return (TRUTH, measured["scenes"]) if "scenes" in measured else (LABEL_FREE, measured["captions"])


def _cell(estimate: dict[str, float], metric: Metric) -> Text:
    value, low, high = (metric.format(estimate[key]) for key in ("value", "low", "high"))
    return Text.assemble(value, " ", (f"{low}-{high}", "dim"))
