"""The metrics of a run before and after training, as a table or as JSON."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jsfree.run.storage import Run

SHOWN = {
    "response_hallucination": ("Responses with an absent object", "%"),
    "mention_hallucination": ("Absent among mentions", "%"),
    "recall": ("Recall", "%"),
    "precision": ("Precision", "%"),
    "f1": ("F1", "%"),
    "duplicates": ("Repeated mentions", ""),
    "attribute_errors": ("Attribute errors", ""),
    "words": ("Words", ""),
    "clip_score": ("CLIP score, x100", "%"),
    "low_clip_sentences": ("Low CLIP sentences", "%"),
    "repeated_sentences": ("Repeated sentences", ""),
}


def show_metrics(run: Run, console: Console, as_json: bool, number: int | None = None) -> None:
    """Print the metrics of round ``number``, by default the last: against MiniWorld's truth, or else label-free."""
    rounds = range(1, run.config.rounds + 1) if number is None else [number]
    done = [number for number in rounds if run.round(number).exists("label_free.json")]
    if not done:
        return
    folder = run.round(done[-1])
    metrics = folder.read_json("metrics.json" if folder.exists("metrics.json") else "label_free.json")
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
        return
    console.print(_table(metrics, f"m{done[-1]}"))


def _table(metrics: dict[str, Any], after: str) -> Table:
    modes = list(metrics["before"])
    count = metrics.get("scenes", metrics.get("captions"))
    table = Table(
        title=f"Before (m0) and after ({after}) on {count} images: %, or counts a caption; 95 % intervals",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for mode in modes:
        table.add_column(f"{mode}: m0", justify="right")
        table.add_column(f"{mode}: {after}", justify="right")
    for key, (label, unit) in SHOWN.items():
        if key in metrics["before"][modes[0]]:
            cells = [_cell(metrics[when][mode][key], unit) for mode in modes for when in ("before", "after")]
            table.add_row(label, *cells)
    return table


def _cell(estimate: dict[str, float], unit: str) -> Text:
    scale, digits = (100, 1) if unit == "%" else (1, 2)
    value, low, high = (f"{scale * estimate[key]:.{digits}f}" for key in ("value", "low", "high"))
    return Text.assemble(value, " ", (f"{low}-{high}", "dim"))
