"""Parts of figures as inline SVG: axes, grids, text and shapes. Lengths are SVG user units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from markupsafe import Markup


@dataclass(frozen=True)
class Axis:
    """Maps [low, high] linearly onto the user units from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        return self.start + (self.end - self.start) * ((value - self.low) / span if span else 0.5)

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round values within the axis."""
        step = _round_step((self.high - self.low) / max(1, count))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def draw_grid(svg: Element, y: Axis, left: float, right: float, ticks: Sequence[float]) -> None:
    """Draw horizontal lines with their values at the left end."""
    for value, name in zip(ticks, tick_names(ticks), strict=True):
        add(svg, "line", class_="grid", x1=left, x2=right, y1=y(value), y2=y(value))
        add(svg, "text", name, class_="tick end", x=left - 7, y=y(value) + 4)


def draw_x_axis(svg: Element, x: Axis, base: float, ticks: Sequence[float], label: str) -> None:
    """Draw the horizontal axis at ``base`` with its values and its label; every second value is minor."""
    add(svg, "line", class_="axis", x1=x.start, x2=x.end, y1=base, y2=base)
    for index, (value, name) in enumerate(zip(ticks, tick_names(ticks), strict=True)):
        add(svg, "text", name, class_="tick middle" + (" minor" if index % 2 else ""), x=x(value), y=base + 17)
    add(svg, "text", label, class_="axis-label", x=(x.start + x.end) / 2, y=base + 34)


def tick_names(ticks: Sequence[float]) -> list[str]:
    """Values with as many decimals as their distance needs."""
    step = min((b - a for a, b in pairwise(ticks)), default=1.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return [f"{value:,.{digits}f}".replace("-", "−").replace(",", "\u202f") for value in ticks]


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``rough``."""
    if not rough > 0 or not math.isfinite(rough):
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= rough * 0.999)


def padded(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def new_figure(width: float, height: float, words: str, kind: str) -> Element:
    """An empty figure; ``words`` describe its content to screen readers."""
    return Element("svg", {"class": kind, "viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": words})


def add(parent: Element, tag: str, text: str | None = None, /, **attributes: str | float) -> Element:
    """Add a child element; numbers are rounded to hundredths, ``class_`` and ``stroke_width`` become SVG names."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    written = {name: value if isinstance(value, str) else f"{value:.2f}" for name, value in named.items()}
    child = ElementTree.SubElement(parent, tag, written)
    child.text = text
    return child


def to_markup(svg: Element) -> Markup:
    """Serialise a figure; ElementTree escapes all data in it."""
    return Markup(ElementTree.tostring(svg, encoding="unicode"))
