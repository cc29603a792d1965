"""Numbers for the page: which metrics there are, how each is written, and whether a change is for the better.

Rates arrive as fractions of 1 and are shown in %, CLIP cosines are shown x 100, counts are per caption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jsfree.report.figures import Span

Measured = Mapping[str, Mapping[str, float | None]]  # metric -> {"value", "low", "high"}
MISSING = "–"
_COUNT_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Metric:
    """A metric: its key, what it is called, how it is shown, and which direction is good (None: neither)."""

    key: str
    name: str
    meaning: str
    better: Literal["lower", "higher"] | None
    scale: float = 100.0
    unit: str = "%"
    digits: int = 1


TRUTH = (
    Metric(
        "response_hallucination",
        "Response hallucination",
        "captions that name an absent object, of those that name any",
        "lower",
    ),
    Metric("mention_hallucination", "Mention hallucination", "mentions of an object that is absent", "lower"),
    Metric("recall", "Recall", "objects in the picture that are named", "higher"),
    Metric("precision", "Precision", "distinct objects named that are in the picture", "higher"),
    Metric("f1", "F1", "harmonic mean of precision and recall", "higher"),
    Metric("mentions", "Mentions", "objects named, per caption", None, 1, "", 2),
    Metric("distinct_mentions", "Distinct mentions", "different objects named, per caption", None, 1, "", 2),
    Metric("duplicates", "Duplicates", "objects named again, per caption", "lower", 1, "", 2),
    Metric(
        "attribute_errors", "Attribute errors", "wrong colour or place of a true object, per caption", "lower", 1, "", 2
    ),
    Metric("words", "Words", "per caption", None, 1, "", 1),
)
LABEL_FREE = (
    Metric("clip_score", "CLIP score", "mean cosine of a caption’s sentences, × 100", "higher", 100, "", 2),
    Metric("low_clip_sentences", "Low CLIP sentences", "sentences below the threshold", "lower"),
    Metric("sentences", "Sentences", "per caption", None, 1, "", 2),
    Metric("words", "Words", "per caption", None, 1, "", 1),
    Metric("repeated_sentences", "Repeated sentences", "per caption", "lower", 1, "", 2),
    Metric("distinct_2", "Distinct bigrams", "different word pairs in all word pairs", None),
    Metric("truncated", "Truncated", "captions cut at the length limit", "lower"),
    Metric("empty", "Empty", "captions without a word", "lower"),
)
TILES = ("response_hallucination", "mention_hallucination", "recall", "f1", "distinct_mentions", "duplicates")
LABEL_FREE_TILES = ("low_clip_sentences", "clip_score", "words", "repeated_sentences", "distinct_2", "truncated")


@dataclass(frozen=True)
class Cell:
    """A value and its interval as they are printed."""

    value: str
    interval: str


@dataclass(frozen=True)
class Change:
    """What became of a metric: ``verdict`` is better | worse | unclear | plain, ``text`` is signed."""

    verdict: str
    text: str


@dataclass(frozen=True)
class Line:
    """A line of a comparison: one cell a model, and the change from the first model to the last."""

    metric: Metric
    cells: list[Cell]
    change: Change
    first: Span | None
    last: Span | None


@dataclass(frozen=True)
class Comparison:
    """All metrics of one decoding mode; ``models`` are m0, m1... in order."""

    mode: str
    models: list[str]
    lines: list[Line]

    def line(self, key: str) -> Line | None:
        """The line of a metric, if it was measured."""
        return next((line for line in self.lines if line.metric.key == key), None)


def comparisons(
    rounds: Sequence[tuple[int, Mapping[str, Any]]], metrics: Sequence[Metric], modes: Sequence[str]
) -> list[Comparison]:
    """One comparison a mode from (round, {"before": {mode: M}, "after": {mode: M}}) of the evaluated rounds."""
    found = []
    for mode in modes:
        columns: dict[str, Measured] = {}
        for number, measured in rounds:
            for model, side in (("m0", "before"), (f"m{number}", "after")):
                values = measured.get(side, {}).get(mode)
                if values is not None:
                    columns.setdefault(model, values)
        if columns:
            found.append(Comparison(mode, list(columns), _lines(metrics, list(columns.values()))))
    return found


def show(value: float | None, metric: Metric, sign: bool = False) -> str:
    """A value in the metric's unit, with a true minus."""
    if value is None or not math.isfinite(value):
        return MISSING
    written = f"{value * metric.scale:{'+' if sign else ''}.{metric.digits}f}"
    if float(written) == 0:
        written = written.lstrip("+-")
    return written.replace("-", "−")


def with_unit(value: float | None, metric: Metric) -> str:
    """A value with its unit, for a tile or a sentence."""
    return show(value, metric) + (f"\u00a0{metric.unit}" if metric.unit else "")


def count_word(number: int) -> str:
    """A small number as a word."""
    return _COUNT_WORDS[number] if number < len(_COUNT_WORDS) else str(number)


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{seconds / 3600:.1f} h"


def whole(number: float) -> str:
    """A count with thin spaces between thousands."""
    return f"{number:,.0f}".replace(",", "\u202f")


def percent(share: float) -> str:
    """A fraction of 1 in %."""
    return f"{100 * share:.1f}\u00a0%"


def cosine(score: float | None) -> str:
    """A CLIP cosine x 100."""
    return MISSING if score is None or not math.isfinite(score) else f"{100 * score:.1f}".replace("-", "−")


def _lines(metrics: Sequence[Metric], columns: Sequence[Measured]) -> list[Line]:
    lines = []
    for metric in metrics:
        spans = [_span(values.get(metric.key)) for values in columns]
        if any(spans):
            cells = [_cell(span, metric) for span in spans]
            lines.append(Line(metric, cells, _change(spans[0], spans[-1], metric), spans[0], spans[-1]))
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
    return Cell(show(span.value, metric), f"{show(span.low, metric)} to {show(span.high, metric)}")


def _change(first: Span | None, last: Span | None, metric: Metric) -> Change:
    """A change counts as clear when the two intervals do not overlap."""
    if first is None or last is None or first is last:
        return Change("plain", "")
    if first == last:
        return Change("plain", "no change")
    difference = last.value - first.value
    text = show(difference, metric, sign=True)
    if metric.better is None:
        return Change("plain", text)
    if first.low <= last.high and last.low <= first.high:
        return Change("unclear", text)
    return Change("better" if (difference < 0) == (metric.better == "lower") else "worse", text)
