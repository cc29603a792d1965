"""Drawn figures: bars match their counts, curves stay in range, and text describes the figure."""

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from jsfree.report import figures
from jsfree.report.figures import Axis, Series, Span


def parts(svg: str, kind: str) -> list[ElementTree.Element]:
    return [item for item in ElementTree.fromstring(svg).iter() if kind in item.get("class", "").split()]


def test_histogram_bars_are_as_tall_as_their_counts():
    gaps = [0.1] * 6 + [5.0] * 3
    svg = figures.gap_histogram(gaps, [False] * 4 + [True] * 2 + [False] * 3, (1.0, 2.0))
    confirmed, inverted = ([float(bar.get("height")) for bar in parts(svg, kind)] for kind in ("order", "inverted"))
    assert len(confirmed) == figures.BINS
    assert confirmed[0] == pytest.approx(2 * inverted[0], abs=0.02)
    assert confirmed[-1] == pytest.approx(0.75 * confirmed[0], abs=0.02)
    assert sum(inverted[1:]) == 0
    (band,) = parts(svg, "kept")
    first = parts(svg, "order")[0]
    assert float(band.get("x")) > float(first.get("x")) + float(first.get("width"))


@pytest.mark.parametrize("gaps", [[], [0.0], [0.0, 0.0, 0.0], [-1.0, 2.0]])
def test_histogram_of_degenerate_gaps_is_drawn(gaps):
    svg = figures.gap_histogram(gaps, [False] * len(gaps), None)
    assert "nan" not in svg
    assert f"{len(gaps)} pairs" in svg


def test_curve_skips_missing_values_and_stays_in_its_panel():
    values = [1.0, None, math.nan, 0.5, -2.0]
    svg = figures.curve("Loss", [0, 1, 2, 3, 4], [Series("loss", values)], (math.log(2), "ln 2"))
    (path,) = parts(svg, "curve")
    points = [tuple(map(float, point.split())) for point in path.get("d").removeprefix("M").split("L")]
    assert len(points) == 3
    assert all(44 <= x <= 330 and 34 <= y <= 168 for x, y in points)
    assert points[0][1] < points[1][1] < points[2][1]
    assert "loss from 1 to -2" in svg
    assert "ln 2" in svg


def test_a_long_curve_is_thinned_and_keeps_both_ends():
    steps = list(range(10_000))
    svg = figures.curve("Loss", steps, [Series("loss", [step / 10_000 for step in steps])])
    for path in (*parts(svg, "raw"), *parts(svg, "curve")):
        assert path.get("d").count("L") < figures.MAX_POINTS
    assert len(svg) < 20_000


def test_a_curve_without_values_shows_a_message():
    assert "not logged" in figures.curve("Loss", [0, 1], [Series("loss", [None, None])])


def test_names_in_figures_are_escaped():
    svg = figures.shares_bar([("<script>", 3.0, "part-x"), ("b", 1.0, "part-b")])
    assert "<script>" not in svg
    assert "&lt;script&gt; 75.0 %" in svg


def test_dumbbell_puts_the_larger_value_further_right():
    svg = figures.dumbbell(Span(0.6, 0.55, 0.65), Span(0.2, 0.16, 0.25), "words")
    before, after = (float(dot.get("cx")) for dot in parts(svg, "dot"))
    assert after < before


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (-3, 12), (0.0001, 0.0004), (0, 123456)])
def test_ticks_are_few_round_and_evenly_spaced(low, high):
    ticks = Axis(low, high, 0, 100).ticks()
    assert 2 <= len(ticks) <= 7
    steps = {round((b - a) / (high - low), 9) for a, b in pairwise(ticks)}
    assert len(steps) == 1
    assert low <= ticks[0]
    assert ticks[-1] <= high * (1 + 1e-9)
