"""Panels that show a metric of several variants, each as a value and its range.

The value is a mean over repeated runs with their range, or one measurement with its interval. A range is a thin bar
through the mark of its value. Lines are told apart by their marks and dashes as well as by the colours of the style
sheet (classes ``series-1`` to ``series-6``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from markupsafe import Markup

from jsfree.report.figures import Span
from jsfree.report.svg import Axis, add, draw_grid, draw_x_axis, new_figure, padded, to_markup

WIDTH, RIGHT, TOP = 340.0, 330.0, 34.0
ROW = 22.0
"""Height of a row."""
CHARACTER = 6.3
"""Mean width of a character of a label."""
MAX_LABEL = 170.0
KINDS = 6
_MARKS = (
    "M-4,0A4,4,0,1,0,4,0A4,4,0,1,0,-4,0Z",
    "M-3.6,-3.6H3.6V3.6H-3.6Z",
    "M0,-4.8L4.6,3.6H-4.6Z",
    "M0,-5L5,0L0,5L-5,0Z",
    "M0,4.8L4.6,-3.6H-4.6Z",
    "M-4,-1.4H-1.4V-4H1.4V-1.4H4V1.4H1.4V4H-1.4V1.4H-4Z",
)
"""Outlines of the marks: circle, square, triangle, diamond, inverted triangle, cross."""


@dataclass(frozen=True)
class SpreadLine:
    """A line of a panel: one mean with its range per label; None where nothing was measured."""

    name: str
    spans: Sequence[Span | None]


def rows_panel(title: str, rows: Sequence[tuple[str, Span | None]], level: tuple[float, str] | None = None) -> Markup:
    """One row per variant; ``level`` draws a labelled vertical line, such as the value before."""
    left = min(MAX_LABEL, CHARACTER * max((len(name) for name, _ in rows), default=0)) + 14
    base = TOP + ROW * len(rows)
    svg = new_figure(WIDTH, base + 40, _words(title, rows), "panel")
    add(svg, "text", title, class_="panel-title", x=0, y=13)
    values = _values([span for _, span in rows], level)
    if not values:
        return _empty(svg, left, (TOP + base) / 2)
    x = Axis(*padded(min(values), max(values)), left, RIGHT)
    draw_x_axis(svg, x, base, x.ticks(4), "")
    if level is not None:
        add(svg, "line", class_="level", x1=x(level[0]), x2=x(level[0]), y1=TOP - 4, y2=base)
        add(svg, "text", level[1], class_="level-label", x=min(RIGHT, x(level[0]) + 8), y=TOP - 8)
    for number, (name, span) in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        add(svg, "text", name, class_="tick", x=0, y=y + 4)
        if span is not None:
            add(svg, "line", class_="spread series-1", x1=x(span.low), x2=x(span.high), y1=y, y2=y)
            _mark(svg, 1, x(span.value), y)
    return to_markup(svg)


def lines_panel(
    title: str,
    axis: str,
    labels: Sequence[str],
    lines: Sequence[SpreadLine],
    level: tuple[float, str] | None = None,
) -> Markup:
    """Lines over the labels of an axis, in order and equally spaced; ``level`` draws a labelled horizontal line."""
    base, left = 168.0, 44.0
    words = "; ".join(_words(line.name, list(zip(labels, line.spans, strict=True))) for line in lines)
    svg = new_figure(WIDTH, 206, f"{title} by {axis}: {words}", "panel")
    add(svg, "text", title, class_="panel-title", x=0, y=13)
    values = _values([span for line in lines for span in line.spans], level)
    if not values:
        return _empty(svg, left, (TOP + base) / 2)
    x, y = Axis(-0.4, len(labels) - 0.6, left, RIGHT), Axis(*padded(min(values), max(values)), base, TOP)
    draw_grid(svg, y, left, RIGHT, y.ticks(4))
    add(svg, "line", class_="axis", x1=left, x2=RIGHT, y1=base, y2=base)
    for number, label in enumerate(labels):
        add(svg, "text", label, class_="tick middle", x=x(number), y=base + 17)
    add(svg, "text", axis, class_="axis-label", x=(left + RIGHT) / 2, y=base + 34)
    if level is not None:
        add(svg, "line", class_="level", x1=left, x2=RIGHT, y1=y(level[0]), y2=y(level[0]))
        add(svg, "text", level[1], class_="level-label", x=RIGHT, y=y(level[0]) - 5)
    for number, line in enumerate(lines):
        shift = 3.0 * (number - (len(lines) - 1) / 2)  # so that the ranges of two lines stay apart
        _draw_line(svg, number + 1, [(x(at) + shift, span) for at, span in enumerate(line.spans)], y)
    return to_markup(svg)


def line_sample(number: int) -> Markup:
    """A short piece of the line ``number``, counted from 1, for a legend."""
    svg = new_figure(34, 14, "", "sample")
    add(svg, "path", class_=f"curve series-{_kind(number)}", d="M1 7H33")
    _mark(svg, number, 17, 7)
    return to_markup(svg)


def _draw_line(svg: Element, number: int, points: Sequence[tuple[float, Span | None]], y: Axis) -> None:
    measured = [(x, span) for x, span in points if span is not None]
    path = "L".join(f"{x:.1f} {y(span.value):.1f}" for x, span in measured)
    if path:
        add(svg, "path", class_=f"curve series-{_kind(number)}", d=f"M{path}")
    for x, span in measured:
        add(svg, "line", class_=f"spread series-{_kind(number)}", x1=x, x2=x, y1=y(span.low), y2=y(span.high))
        _mark(svg, number, x, y(span.value))


def _mark(svg: Element, number: int, x: float, y: float) -> None:
    kind = _kind(number)
    add(svg, "path", class_=f"mark series-{kind}", d=_MARKS[kind - 1], transform=f"translate({x:.1f} {y:.1f})")


def _kind(number: int) -> int:
    return (number - 1) % KINDS + 1


def _values(spans: Sequence[Span | None], level: tuple[float, str] | None) -> list[float]:
    """All numbers that a panel must have space for; empty if nothing was measured."""
    values = [end for span in spans if span is not None for end in (span.low, span.value, span.high)]
    return [*values, level[0]] if values and level is not None else values


def _empty(svg: Element, left: float, y: float) -> Markup:
    add(svg, "text", "not measured", class_="tick", x=left, y=y)
    return to_markup(svg)


def _words(title: str, rows: Sequence[tuple[str, Span | None]]) -> str:
    """The content of a panel for screen readers."""
    shown = [f"{name} {span.value:.3g}" for name, span in rows if span is not None]
    return f"{title}: {', '.join(shown) or 'not measured'}"
