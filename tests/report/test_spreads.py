"""Panels of means and ranges: marks lie at their values, and nothing is told apart by colour alone."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from jsfree.report import spreads
from jsfree.report.figures import Span
from jsfree.report.spreads import SpreadLine


def parts(svg: str, kind: str) -> list[ElementTree.Element]:
    return [item for item in ElementTree.fromstring(svg).iter() if kind in item.get("class", "").split()]


def place(mark: ElementTree.Element) -> tuple[float, float]:
    x, y = mark.get("transform").removeprefix("translate(").removesuffix(")").split()
    return float(x), float(y)


def test_rows_show_means_ranges_and_the_level_on_one_scale():
    rows = [("low", Span(10.0, 8.0, 12.0)), ("missing", None), ("high", Span(30.0, 30.0, 30.0))]
    svg = spreads.rows_panel("Recall, %", rows, (20.0, "m0"))
    low, high = map(place, parts(svg, "mark"))
    (level,) = parts(svg, "level")
    assert float(level.get("x1")) == pytest.approx((low[0] + high[0]) / 2, abs=0.1)  # 20 is between 10 and 30
    assert high[1] - low[1] == pytest.approx(2 * spreads.ROW)
    spread = parts(svg, "spread")[0]
    tenth = (high[0] - low[0]) / 10
    assert [float(spread.get("x1")), float(spread.get("x2"))] == pytest.approx(
        [low[0] - tenth, low[0] + tenth], abs=0.1
    )
    assert "low 10, high 30" in svg
    assert "missing" in svg


def test_lines_connect_what_was_measured_at_equal_distances():
    spans = [Span(1.0, 1.0, 1.0), None, Span(3.0, 2.0, 4.0)]
    svg = spreads.lines_panel("F1", "split", ["1", "2", "10"], [SpreadLine("fixed", spans)], (2.0, "m0"))
    (curve,) = parts(svg, "curve")
    points = [tuple(map(float, point.split())) for point in curve.get("d").removeprefix("M").split("L")]
    assert [place(mark) for mark in parts(svg, "mark")] == points
    labels = [float(tick.get("x")) for tick in parts(svg, "middle")]
    assert [b - a for a, b in pairwise(labels)] == pytest.approx([labels[1] - labels[0]] * 2, abs=0.02)
    assert points[0][0] == pytest.approx(labels[0], abs=0.1)
    assert points[1][0] == pytest.approx(labels[2], abs=0.1)
    assert points[1][1] < points[0][1]  # higher values are further up


def test_two_lines_differ_in_marks_as_well_as_in_classes():
    lines = [SpreadLine(name, [Span(1.0, 1.0, 1.0)]) for name in ("a", "b")]
    marks = parts(spreads.lines_panel("F1", "x", ["1"], lines), "mark")
    assert len({mark.get("d") for mark in marks}) == 2
    assert [place(mark)[0] for mark in marks] == sorted({place(mark)[0] for mark in marks})
    assert parts(spreads.line_sample(2), "mark")[0].get("d") == marks[1].get("d")


@pytest.mark.parametrize("count", [0, 1])
def test_a_panel_without_values_says_so(count):
    assert "not measured" in spreads.rows_panel("F1", [("a", None)] * count, (1.0, "m0"))
    assert "not measured" in spreads.lines_panel("F1", "x", ["1"], [SpreadLine("a", [None])] * count)


def test_text_is_escaped():
    svg = spreads.rows_panel("<b>", [("<script>", Span(1.0, 1.0, 1.0))])
    assert "<script>" not in svg
    assert "&lt;script&gt;" in svg
