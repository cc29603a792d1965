"""The figures of the report, as inline SVG built from plain numbers.

Marks have classes (``before``, ``after``, ``kept``...) that the page's style sheet colours, so that one figure serves
light, dark and print. Nothing is distinguished by colour alone: a hatch, a dash or a word repeats it (the page holds
the ``hatch`` pattern that the style sheet refers to). Lengths are SVG user units; a figure scales with its column.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard
from xml.etree.ElementTree import Element

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from jsfree.report.svg import Axis, add, draw_grid, draw_x_axis, new_figure, padded, to_markup

MAX_POINTS = 240  # of a curve: more are indistinguishable on a panel and enlarge the page
BINS = 40
Gaps = Sequence[float] | NDArray[np.float64]
Flags = Sequence[bool] | NDArray[np.bool_]


@dataclass(frozen=True)
class Series:
    """A curve: one value per step of the panel (None where nothing was logged); ``kind`` is its class."""

    name: str
    values: Sequence[float | None]
    kind: str = "after"


@dataclass(frozen=True)
class Span:
    """A value with its interval."""

    value: float
    low: float
    high: float


def gap_histogram(
    gaps: Gaps, inverted: Flags, kept: tuple[float, float] | None, unit: str = "CLIP cosine × 100"
) -> Markup:
    """Histogram of the pairs' score gaps, stacked by whether the judge confirmed or inverted the order of the ratios.

    ``kept`` is the range of gaps trained on, which is shaded; ``unit`` names the score and its scale.
    """
    width, height, top, base, left = 760.0, 270.0, 26.0, 222.0, 46.0
    low, high = float(min(0.0, min(gaps, default=0.0))), float(max(1e-9, max(gaps, default=0.0)))
    counts = _stacked_counts(gaps, inverted, low, high)
    x = Axis(low, high, left, width - 8)
    y = Axis(0, max(order + swapped for order, swapped in counts) or 1, base, top + 14)
    svg = new_figure(width, height, _histogram_words(gaps, inverted, kept), "wide")
    if kept:
        add(svg, "rect", class_="kept", x=x(kept[0]), y=top, width=max(1.0, x(kept[1]) - x(kept[0])), height=base - top)
        add(svg, "text", "kept for training", class_="kept-label", x=(x(kept[0]) + x(kept[1])) / 2, y=top - 8)
    draw_grid(svg, y, left, width - 8, [value for value in y.ticks(4) if value == round(value)])
    step = (x.end - x.start) / BINS
    for index, (order, swapped) in enumerate(counts):
        at = {"x": left + index * step + 0.75, "width": step - 1.5}
        add(svg, "rect", class_="bar order", y=y(order), height=base - y(order), **at)
        for kind in ("bar inverted", "hatched"):
            add(svg, "rect", class_=kind, y=y(order + swapped), height=y(order) - y(order + swapped), **at)
    draw_x_axis(svg, x, base, x.ticks(8), f"score gap of the pair ({unit})")
    return to_markup(svg)


def curve(
    title: str, steps: Sequence[float], series: Sequence[Series], level: tuple[float, str] | None = None
) -> Markup:
    """One panel of training curves over optimizer steps; ``level`` draws a labelled horizontal line."""
    width, height, left, right, top, base = 340.0, 206.0, 44.0, 330.0, 34.0, 168.0
    values = [value for line in series for value in line.values if _finite(value)]
    svg = new_figure(width, height, _curve_words(title, series), "panel")
    add(svg, "text", title, class_="panel-title", x=0, y=13)
    if not values or not steps:
        add(svg, "text", "not logged", class_="tick", x=left, y=(top + base) / 2)
        return to_markup(svg)
    shown = [*values, level[0]] if level else values
    low, high = padded(min(shown), max(shown))
    x, y = Axis(min(steps), max(steps), left, right), Axis(low, high, base, top)
    draw_grid(svg, y, left, right, y.ticks(4))
    if level:
        add(svg, "line", class_="level", x1=left, x2=right, y1=y(level[0]), y2=y(level[0]))
        add(svg, "text", level[1], class_="level-label", x=right, y=y(level[0]) - 5)
    for line in series:
        _draw_curve(svg, x, y, steps, line)
    _key(svg, series, right)
    draw_x_axis(svg, x, base, x.ticks(4), "step")
    return to_markup(svg)


def shares_bar(parts: Sequence[tuple[str, float, str]]) -> Markup:
    """One horizontal bar of (name, amount, class) parts; a part shows its name if it is wide enough."""
    width, height = 760.0, 44.0
    total = sum(amount for _, amount, _ in parts) or 1.0
    words = ", ".join(f"{name} {100 * amount / total:.1f} %" for name, amount, _ in parts)
    svg = new_figure(width, height, f"Share of device time by stage: {words}", "wide bar-figure")
    at = 0.0
    for name, amount, kind in parts:
        share = width * amount / total
        part = add(svg, "g")
        add(part, "title", f"{name}: {100 * amount / total:.1f} %")
        add(part, "rect", class_=f"part {kind}", x=at, y=0, width=max(0.0, share - 2), height=height, rx=3)
        if len(name) * 8 + 14 < share:
            add(part, "text", name, class_="part-label", x=at + share / 2 - 1, y=height / 2 + 4.5)
        at += share
    return to_markup(svg)


def dumbbell(before: Span, after: Span, label: str) -> Markup:
    """Two values with their intervals on one scale: a ring before, a dot after."""
    width, height = 190.0, 40.0
    ends = [0.0, before.low, before.high, after.low, after.high, before.value, after.value]
    ceiling = 1.0 if max(ends) <= 1 else max(ends) * 1.1
    x = Axis(min(ends), ceiling, 6, width - 6)
    svg = new_figure(width, height, label, "dumbbell")
    add(svg, "line", class_="track", x1=x.start, x2=x.end, y1=20, y2=20)
    for span, kind, y in ((before, "before", 14.0), (after, "after", 26.0)):
        add(svg, "line", class_=f"interval {kind}", x1=x(span.low), x2=x(span.high), y1=y, y2=y)
        add(svg, "circle", class_=f"dot {kind}", cx=x(span.value), cy=y, r=4.5)
    return to_markup(svg)


def _stacked_counts(gaps: Gaps, inverted: Flags, low: float, high: float) -> list[list[int]]:
    counts = [[0, 0] for _ in range(BINS)]
    for gap, swapped in zip(gaps, inverted, strict=True):
        index = min(BINS - 1, int((gap - low) / (high - low) * BINS))
        counts[index][int(swapped)] += 1
    return counts


def _histogram_words(gaps: Gaps, inverted: Flags, kept: tuple[float, float] | None) -> str:
    share = 100 * sum(inverted) / max(1, len(gaps))
    chosen = f"; gaps from {kept[0]:.2f} to {kept[1]:.2f} are kept for training" if kept else ""
    return f"Histogram of the score gaps of {len(gaps)} pairs; {share:.1f} % of them are inverted{chosen}."


def _curve_words(title: str, series: Sequence[Series]) -> str:
    parts = []
    for line in series:
        values = [value for value in line.values if _finite(value)]
        if values:
            parts.append(f"{line.name} from {values[0]:.3g} to {values[-1]:.3g}")
    return f"{title} over training steps: {', '.join(parts) or 'not logged'}."


def _draw_curve(svg: Element, x: Axis, y: Axis, steps: Sequence[float], line: Series) -> None:
    """Draw the logged values thin and their running mean thick; a short log is drawn unsmoothed."""
    points = [(step, value) for step, value in zip(steps, line.values, strict=True) if value is not None]
    points = [point for point in points if math.isfinite(point[1])]
    window = max(1, len(points) // 16)
    if window > 1:
        add(svg, "path", class_=f"raw {line.kind}", d=_path(x, y, _thinned(points)))
    add(svg, "path", class_=f"curve {line.kind}", d=_path(x, y, _thinned(_smooth(points, window))))


def _smooth(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Centred running mean over ``window`` points, narrower at the ends."""
    half = window // 2
    smooth = []
    for index, (step, _) in enumerate(points):
        near = points[max(0, index - half) : index + half + 1]
        smooth.append((step, sum(value for _, value in near) / len(near)))
    return smooth


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MAX_POINTS`` of the points, evenly spaced, with the first and the last."""
    if len(points) <= MAX_POINTS:
        return list(points)
    stride = (len(points) - 1) / (MAX_POINTS - 1)
    return [points[round(index * stride)] for index in range(MAX_POINTS)]


def _path(x: Axis, y: Axis, points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)


def _key(svg: Element, series: Sequence[Series], right: float) -> None:
    """Write the names of several curves into the panel's title line, from the right."""
    at = right
    for line in reversed(series if len(series) > 1 else ()):
        at -= 6.4 * len(line.name)
        add(svg, "text", line.name, class_="key", x=at, y=13)
        add(svg, "line", class_=f"curve {line.kind}", x1=at - 22, x2=at - 5, y1=9, y2=9)
        at -= 34


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
