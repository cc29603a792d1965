"""``jsfree runs`` lists the runs in a folder; ``jsfree compare`` puts two of them side by side."""

# No `from __future__ import annotations`: Typer reads these annotations when the commands are registered.

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jsfree.errors import ConfigError, RunError
from jsfree.evaluation.metrics import LABEL_FREE, MISSING, TRUTH, Metric
from jsfree.monitor.comparison import MetricComparison, ModeComparison, RunComparison, compare_runs
from jsfree.monitor.runs import BeforeAfter, RunSummary, list_runs, measured_metrics
from jsfree.run.folder import Folder
from jsfree.run.run import Run
from ray_jobs.commands.options import AsJson, Debug, set_log_level

FolderArgument = Annotated[str, typer.Argument(metavar="FOLDER", help="Folder or URI with runs, also in subfolders.")]
TwoRuns = Annotated[
    list[str], typer.Option("--run", metavar="PATH", help="Folder or URI of a run. Must be given twice.")
]


def runs(folder: FolderArgument = "runs", as_json: AsJson = False, debug: Debug = False) -> None:
    """List the runs in a folder: state, rounds, and metrics before and after."""
    set_log_level(debug)
    where = Folder(folder)
    if not where.exists():
        raise RunError(f"{where.uri} does not exist", "name a folder that holds runs, such as `jsfree runs runs`")
    found = list_runs(where)
    if as_json:
        typer.echo(json.dumps([run.as_json() for run in found], indent=2, ensure_ascii=False))
        return
    console = _console()
    if not found:
        console.print(f"No runs in {where.uri}.", soft_wrap=True)
        return
    console.print(_runs_table(found, where.uri))


def compare(run: TwoRuns, as_json: AsJson = False, debug: Debug = False) -> None:
    """Compare two runs: settings that differ, metrics with intervals, and differences on the same images."""
    set_log_level(debug)
    if len(run) != 2:
        raise ConfigError(
            f"{len(run)} run{'s' if len(run) != 1 else ''} named", "name two: jsfree compare --run A --run B"
        )
    compared = compare_runs(Run.existing(run[0]), Run.existing(run[1]))
    if as_json:
        typer.echo(json.dumps(compared.as_json(), indent=2, ensure_ascii=False))
        return
    console = _console()
    for line in (f"A  {compared.runs[0]}  {compared.models[0]}", f"B  {compared.runs[1]}  {compared.models[1]}"):
        console.print(line, soft_wrap=True)
    console.print(_settings_table(compared) if compared.settings else "All settings that affect results are equal.")
    for mode in compared.modes:
        console.print(_mode_table(mode))


def _console() -> Console:
    from ray_jobs.commands.console import plain_or_live

    return plain_or_live()


def _runs_table(found: Sequence[RunSummary], uri: str) -> Table:
    metrics = [metric for metric in measured_metrics(list(found)) if not metric.secondary]
    table = Table(title=f"Runs in {uri}: metrics of m0 → result, first evaluation mode", title_justify="left")
    table.add_column("run", no_wrap=True)
    for title in ("state", "rounds"):
        table.add_column(title)
    for metric in metrics:
        table.add_column(metric.label + (f", {metric.unit}" if metric.unit else ""), justify="right")
    for run in found:
        state = " ".join(filter(None, (run.state, run.stage, run.error)))
        rounds = f"{run.rounds_done}/{run.rounds}" if run.rounds else ""
        table.add_row(Text(run.name), Text(state), rounds, *(_change(run.metric(m.name), m) for m in metrics))
    return table


def _change(measured: BeforeAfter | None, metric: Metric) -> str:
    if measured is None:
        return ""
    return " → ".join(metric.format(side["value"]) for side in (measured.before, measured.after))


def _settings_table(compared: RunComparison) -> Table:
    table = Table(title="Settings that differ", title_justify="left")
    for title in ("setting", "A", "B"):
        table.add_column(title, overflow="fold")
    for key, values in compared.settings.items():
        table.add_row(Text(key), *(Text(_short(value)) for value in values))
    return table


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if value is not None else MISSING


def _mode_table(mode: ModeComparison) -> Table:
    images = f"paired on {mode.images} images" if mode.images else "no image in common, so no differences"
    kind = "with labels" if mode.with_truth else "without labels"
    table = Table(title=f"{mode.mode.capitalize()} captions, {kind}: 95 % intervals, {images}", title_justify="left")
    table.add_column("", no_wrap=True)
    for title in ("A", "B", "B − A"):
        table.add_column(title, justify="right")
    known = {metric.name: metric for metric in (TRUTH if mode.with_truth else LABEL_FREE)}
    for line in mode.metrics:
        table.add_row(*_metric_row(line, known[line.metric]))
    return table


def _metric_row(line: MetricComparison, metric: Metric) -> list[Text]:
    label = metric.label + (f", {metric.unit}" if metric.unit else "")
    difference = _interval(line.difference, metric, sign=True)
    if line.difference is not None and not line.difference["low"] <= 0 <= line.difference["high"]:
        difference.stylize("bold")
    return [Text(label), _interval(line.first, metric), _interval(line.second, metric), difference]


def _interval(measured: Mapping[str, float] | None, metric: Metric, *, sign: bool = False) -> Text:
    if measured is None:
        return Text(MISSING)
    value, low, high = (metric.format(measured[key], sign=sign) for key in ("value", "low", "high"))
    return Text.assemble(value, (f"  {low} to {high}", "dim"))
