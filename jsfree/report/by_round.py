"""Every metric by round: one panel per metric, with a line per decoding mode from m0 to the last model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jsfree.evaluation.metrics import Metric
from jsfree.report import spreads
from jsfree.report.figures import Span
from jsfree.report.spreads import SpreadLine
from jsfree.report.tables import Comparison

MIN_MODELS = 3
"""Fewest models whose metrics are drawn; a table shows two better."""


@dataclass(frozen=True)
class MetricCurves:
    """The panels, and for each decoding mode a sample of its line; no samples if there is only one mode."""

    panels: list[Markup]
    legend: list[tuple[Markup, str]]


def metric_curves(compared: Sequence[Comparison], metrics: Sequence[Metric]) -> MetricCurves | None:
    """Curves of all measured ``metrics``; None before the second round is evaluated."""
    models = sorted({model for table in compared for model in table.models}, key=_round_of)
    if len(models) < MIN_MODELS:
        return None
    panels = []
    for metric in metrics:
        lines = [SpreadLine(table.mode, _spans(table, metric, models)) for table in compared]
        if any(span is not None for line in lines for span in line.spans):
            title = metric.label + (f", {metric.unit}" if metric.unit else "")
            panels.append(spreads.lines_panel(title, "model", models, lines))
    names = [table.mode for table in compared] if len(compared) > 1 else []
    return MetricCurves(panels, [(spreads.line_sample(number), name) for number, name in enumerate(names, 1)])


def _spans(table: Comparison, metric: Metric, models: Sequence[str]) -> list[Span | None]:
    """The metric of each model under one mode, in displayed units."""
    line = table.line(metric.name)
    if line is None:
        return [None] * len(models)
    by_model = dict(zip(table.models, line.spans, strict=True))
    return [_displayed(by_model.get(model), metric.scale) for model in models]


def _displayed(span: Span | None, scale: float) -> Span | None:
    return span and Span(scale * span.value, scale * span.low, scale * span.high)


def _round_of(model: str) -> int:
    return int(model.removeprefix("m"))
