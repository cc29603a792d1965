"""Formats of numbers, and verdicts on changes."""

import pytest

from jsfree.evaluation.metrics import Metric
from jsfree.report import tables

RATE = Metric("rate", "Rate", "", "lower")


def measured(value, low, high):
    return {"rate": {"value": value, "low": low, "high": high}}


@pytest.mark.parametrize(
    ("before", "after", "verdict", "text"),
    [
        ((0.6, 0.55, 0.65), (0.2, 0.15, 0.25), "better", "−40.0"),
        ((0.2, 0.15, 0.25), (0.6, 0.55, 0.65), "worse", "+40.0"),
        ((0.2, 0.15, 0.25), (0.24, 0.19, 0.3), "unclear", "+4.0"),
        ((0.2, 0.15, 0.25), (0.2, 0.15, 0.25), "plain", "no change"),
        ((0.2, 0.15, 0.25), (None, None, None), "plain", ""),
    ],
)
def test_verdicts_follow_from_direction_and_intervals(before, after, verdict, text):
    rounds = [(1, {"before": {"greedy": measured(*before)}, "after": {"greedy": measured(*after)}})]
    (table,) = tables.comparisons(rounds, [RATE], ["greedy", "sampled"])
    assert table.models == ["m0", "m1"]
    assert (table.lines[0].change.verdict, table.lines[0].change.text) == (verdict, text)


def test_a_neutral_metric_has_no_verdict():
    words = Metric("rate", "Words", "", None, 1, "", 1)
    rounds = [(1, {"before": {"greedy": measured(40, 39, 41)}, "after": {"greedy": measured(30, 29, 31)}})]
    (table,) = tables.comparisons(rounds, [words], ["greedy"])
    assert table.lines[0].change == tables.Change("plain", "−10.0")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (99.9, "99.9 s"),
        (99.99, "1 min 39 s"),
        (3600, "60 min 00 s"),
        (5400, "1.5 h"),
        (360000, "100.0 h"),
    ],
)
def test_durations_are_formatted(seconds, words):
    assert tables.duration(seconds) == words
