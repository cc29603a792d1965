"""Builds the report of an ablation, ``index.html``, from its summary: one page like the report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from jsfree.ablation.definition import METRICS
from jsfree.ablation.results import DONE, Summary
from jsfree.evaluation.metrics import LABEL_FREE, MISSING, TRUTH, Metric
from jsfree.report import spreads, tables
from jsfree.report.figures import Span
from jsfree.report.spreads import SpreadLine
from jsfree.run.folder import Folder
from jsfree.run.stages import STAGES, part_of

PAGE = "index.html"
SEED_MODEL = "m0"


@dataclass(frozen=True)
class Row:
    """A model in the table of one decoding mode; each cell is the mean and, with several seeds, the range."""

    name: str
    cells: list[tables.Cell]
    is_seed_model: bool = False


@dataclass(frozen=True)
class ModeTable:
    """All models under one decoding mode."""

    mode: str
    metrics: list[Metric]
    rows: list[Row]


@dataclass(frozen=True)
class RunLine:
    """One run: its report, its state and what it cost, formatted; ``stages`` are device times by command."""

    cell: str
    seed: str
    path: str
    status: str
    error: str
    pairs: str
    seconds: str
    stages: list[str]
    reused: str


def write_page(out: Folder, summary: Summary) -> str:
    """Write the page into the folder of the ablation; return its path or URI.

    Raises:
        StorageError: it cannot be written.
    """
    out.write(PAGE, render(summary).encode())
    return f"{out.uri}/{PAGE}"


def render(summary: Summary) -> str:
    """The page as HTML text."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader("jsfree.ablation", "."), PackageLoader("jsfree.report", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cells = summary["cells"]
    runs = [run_line(name, seed, run) for name, cell in cells.items() for seed, run in cell["runs"].items()]
    return environment.get_template("ablation.html.j2").render(
        summary=summary,
        tables=mode_tables(summary),
        panels=panels(summary),
        legend=legend(summary),
        figure_mode=figure_mode(summary),
        runs=runs,
        done=sum(run.status == DONE for run in runs),
        commands=list(STAGES),
        own_time=tables.duration(summary["device_seconds"]),
        alone_time=tables.duration(summary["device_seconds_unshared"]),
        settings={name: _setting_lines(cell["settings"]) for name, cell in cells.items()},
        common=_setting_lines(summary["common"]),
    )


def mode_tables(summary: Summary) -> list[ModeTable]:
    """One table per decoding mode, with the metrics that were measured: those with truth, else the label-free ones.

    Cells that evaluate the same m0 share one row of it.
    """
    cells = summary["cells"]
    modes = list(dict.fromkeys(mode for cell in cells.values() for mode in cell["after"]))
    return [_mode_table(mode, cells) for mode in modes]


def _mode_table(mode: str, cells: Mapping[str, Any]) -> ModeTable:
    measured = {name: cell for name, cell in cells.items() if mode in cell["after"]}
    found = {metric for cell in measured.values() for metric in cell["after"][mode]}
    known = TRUTH if found & {metric.name for metric in TRUTH if metric.name != "words"} else LABEL_FREE
    metrics = [metric for metric in known if metric.name in found and not metric.secondary]
    before: list[tuple[str, Mapping[str, Any]]] = []
    for name, cell in measured.items():
        values = cell["before"][mode]
        if all(values != others for _, others in before):
            before.append((name, values))
    rows = [
        Row(SEED_MODEL if len(before) == 1 else f"{SEED_MODEL} ({name})", _cells(values, metrics), is_seed_model=True)
        for name, values in before
    ]
    rows += [Row(name, _cells(cell["after"][mode], metrics)) for name, cell in measured.items()]
    return ModeTable(mode, metrics, rows)


def _cells(values: Mapping[str, Mapping[str, float]], metrics: Sequence[Metric]) -> list[tables.Cell]:
    cells = []
    for metric in metrics:
        spread = values.get(metric.name)
        if spread is None:
            cells.append(tables.Cell(MISSING, ""))
            continue
        mean, low, high = (metric.format(spread[key]) for key in ("mean", "min", "max"))
        cells.append(tables.Cell(mean, f"{low} to {high}" if spread["min"] != spread["max"] else ""))
    return cells


def figure_mode(summary: Summary) -> str:
    """The decoding mode that the figure shows; empty if nothing is measured."""
    modes = [mode for cell in summary["cells"].values() for mode in cell["after"]]
    return summary["figure"]["mode"] or next(iter(modes), "")


def panels(summary: Summary) -> list[Markup]:
    """One panel per metric of the figure; empty if nothing is measured."""
    mode, cells = figure_mode(summary), summary["cells"]
    names = [name for name in summary["figure"]["metrics"] if any(_span(cell, mode, name) for cell in cells.values())]
    return [_panel(summary, METRICS[name], mode) for name in names]


def legend(summary: Summary) -> list[tuple[Markup, str]]:
    """Samples of the figure's lines with their labels; empty if there is only one line."""
    series = summary["figure"]["series"]
    labels = summary["axes"][series] if series else []
    return [(spreads.line_sample(number), label) for number, label in enumerate(labels, 1)]


def _panel(summary: Summary, metric: Metric, mode: str) -> Markup:
    figure, cells = summary["figure"], summary["cells"]
    title = metric.label + (f", {metric.unit}" if metric.unit else "")
    before = [span for cell in cells.values() if (span := _span(cell, mode, metric.name, "before"))]
    level = (sum(span.value for span in before) / len(before), SEED_MODEL) if before else None
    if figure["x"] is None:
        rows = [(name, _span(cell, mode, metric.name)) for name, cell in cells.items()]
        return spreads.rows_panel(title, rows, level)
    axis, series = figure["x"], figure["series"]
    labels = summary["axes"][axis]
    lines = []
    for chosen in summary["axes"][series] if series else [""]:
        of_line = [cell for cell in cells.values() if not series or cell["labels"].get(series) == chosen]
        by_label = {cell["labels"].get(axis): _span(cell, mode, metric.name) for cell in of_line}
        lines.append(SpreadLine(chosen or metric.label, [by_label.get(label) for label in labels]))
    return spreads.lines_panel(title, axis, labels, lines, level)


def _span(cell: Mapping[str, Any], mode: str, metric: str, when: str = "after") -> Span | None:
    """Mean and range of a metric, in displayed units."""
    spread = cell[when].get(mode, {}).get(metric)
    if spread is None:
        return None
    scale = METRICS[metric].scale
    return Span(scale * spread["mean"], scale * spread["min"], scale * spread["max"])


def run_line(cell: str, seed: str, run: Mapping[str, Any]) -> RunLine:
    """The line of a run in the table of runs."""
    by_command = dict.fromkeys(STAGES, 0.0)
    for name, stage in run["stages"].items():
        part = part_of(name.partition("/")[2])
        if part is not None and not stage["reused_from"]:
            by_command[part.stage] += stage["device_seconds"]
    reused = [name.partition("/")[2] for name, stage in run["stages"].items() if stage["reused_from"]]
    return RunLine(
        cell,
        seed,
        run["run"],
        run["status"],
        run.get("error", ""),
        MISSING if run["pairs"] is None else tables.whole(run["pairs"]),
        tables.duration(run["seconds"]),
        [tables.duration(seconds) if seconds else MISSING for seconds in by_command.values()],
        ", ".join(dict.fromkeys(reused)),
    )


def _setting_lines(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}: {value}" for key, value in settings.items()]
