"""Comparisons of models as the page and the model card print them, and the formats of other numbers.

Metrics arrive as stored: rates as fractions of 1, CLIP cosines, and counts per caption.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsfree.evaluation.metrics import MISSING, Metric
from jsfree.report.figures import Span

Measured = Mapping[str, Mapping[str, float | None]]
"""Metrics by name, each ``{"value", "low", "high"}``."""
_COUNT_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
TILES = ("response_hallucination", "mention_hallucination", "recall", "f1", "distinct_mentions", "duplicates")
LABEL_FREE_TILES = ("low_clip_sentences", "clip_score", "words", "repeated_sentences", "distinct_2", "truncated")


@dataclass(frozen=True)
class Cell:
    """A value and its interval, formatted."""

    value: str
    interval: str


@dataclass(frozen=True)
class Change:
    """The change of a metric: ``verdict`` is better | worse | unclear | plain, ``text`` the signed difference."""

    verdict: str
    text: str


@dataclass(frozen=True)
class Line:
    """A line of a comparison: one cell and one span per model, and the change from the first model to the result.

    ``result`` is the position of the run's result, which is the last model unless a stop rule ended the run.
    """

    metric: Metric
    cells: list[Cell]
    change: Change
    spans: list[Span | None]
    result: int

    @property
    def first(self) -> Span | None:
        """The value of the first model, as stored."""
        return self.spans[0]

    @property
    def last(self) -> Span | None:
        """The value of the result, as stored."""
        return self.spans[self.result]


@dataclass(frozen=True)
class Comparison:
    """All metrics of one decoding mode; ``models`` are m0, m1... in order, and ``result`` is one of them."""

    mode: str
    models: list[str]
    lines: list[Line]
    result: str

    def line(self, name: str) -> Line | None:
        """The line of a metric, if it was measured."""
        return next((line for line in self.lines if line.metric.name == name), None)


def comparisons(
    rounds: Sequence[tuple[int, Mapping[str, Any]]],
    metrics: Sequence[Metric],
    modes: Sequence[str],
    results: Collection[int] | None = None,
) -> list[Comparison]:
    """One comparison per mode, from (round, {"before": {mode: M}, "after": {mode: M}}) of the evaluated rounds.

    Args:
        results: rounds of which the last evaluated one has the result; by default all.
    """
    compared = []
    for mode in modes:
        columns: dict[str, Measured] = {}
        result = 0
        for number, measured in rounds:
            for model, side in (("m0", "before"), (f"m{number}", "after")):
                values = measured.get(side, {}).get(mode)
                if values is not None:
                    columns.setdefault(model, values)
            if results is None or number in results:
                result = len(columns) - 1
        if columns:
            models = list(columns)
            compared.append(Comparison(mode, models, _lines(metrics, list(columns.values()), result), models[result]))
    return compared


def count_word(number: int) -> str:
    """A small number as a word."""
    return _COUNT_WORDS[number] if number < len(_COUNT_WORDS) else str(number)


def duration(seconds: float) -> str:
    """Seconds, in a unit that suits their size."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{seconds / 3600:.1f} h"


def whole(number: float) -> str:
    """A count with thin spaces between thousands."""
    return f"{number:,.0f}".replace(",", "\u202f")


def percent(share: float) -> str:
    """A fraction of 1, in %."""
    return f"{100 * share:.1f}\u00a0%"


def cosine(score: float | None) -> str:
    """A CLIP cosine, × 100."""
    return MISSING if score is None or not math.isfinite(score) else f"{100 * score:.1f}".replace("-", "−")


def _lines(metrics: Sequence[Metric], columns: Sequence[Measured], result: int) -> list[Line]:
    lines = []
    for metric in metrics:
        spans = [_span(values.get(metric.name)) for values in columns]
        if any(spans):
            cells = [_cell(span, metric) for span in spans]
            lines.append(Line(metric, cells, _change(spans[0], spans[result], metric), spans, result))
    return lines


def _span(measured: Mapping[str, float | None] | None) -> Span | None:
    value = (measured or {}).get("value")
    if measured is None or value is None or not math.isfinite(value):
        return None
    low, high = measured.get("low"), measured.get("high")
    return Span(value, value if low is None else low, value if high is None else high)


def _cell(span: Span | None, metric: Metric) -> Cell:
    if span is None:
        return Cell(MISSING, "")
    return Cell(metric.format(span.value), f"{metric.format(span.low)} to {metric.format(span.high)}")


def _change(first: Span | None, last: Span | None, metric: Metric) -> Change:
    """The change between two models; it is better or worse only if their intervals do not overlap."""
    if first is None or last is None or first is last:
        return Change("plain", "")
    if first == last:
        return Change("plain", "no change")
    difference = last.value - first.value
    text = metric.format(difference, sign=True)
    if metric.better is None:
        return Change("plain", text)
    if first.low <= last.high and last.low <= first.high:
        return Change("unclear", text)
    return Change("better" if (difference < 0) == (metric.better == "lower") else "worse", text)
