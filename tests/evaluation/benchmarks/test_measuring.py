"""Metrics of summed counts, and paired differences between models."""

import itertools
import math

import numpy as np
import pytest

from jsfree.errors import ConfigError
from jsfree.evaluation.benchmarks.measuring import (
    CountRow,
    CountTable,
    Measure,
    complement,
    differences,
    harmonic_mean,
    measure,
    ratio,
)
from jsfree.evaluation.metrics import Metric

RATE = Measure(Metric("rate", "Rate", "", "lower"), ratio("wrong", "all"))


def rows(counts):
    return [CountRow(image, {"wrong": wrong, "all": total}) for image, wrong, total in counts]


def test_counts_of_an_image_are_added_up():
    table = CountTable.of([*rows([("a", 1, 2), ("b", 0, 3), ("a", 1, 1)]), CountRow("b", {"seen": 5})])
    assert table.images == ("a", "b")
    assert table.sums() == {"all": 6, "wrong": 2, "seen": 5}
    assert measure(table, [RATE])["rate"].value == pytest.approx(2 / 6)


def test_intervals_draw_images_and_not_answers():
    """Ten equal answers about one image are one observation, so they leave no uncertainty about its rate."""
    one_image = CountTable.of(rows([("a", 1, 2)] * 10))
    ten_images = CountTable.of(rows([(str(n), n % 2, 1) for n in range(10)]))
    assert measure(one_image, [RATE])["rate"] == pytest.approx((0.5, 0.5, 0.5))
    low, high = measure(ten_images, [RATE])["rate"][1:]
    assert low < 0.3
    assert high > 0.7


def test_a_metric_of_missing_columns_is_undefined():
    table = CountTable.of([CountRow("a", {"all": 0})])
    assert math.isnan(measure(table, [RATE])["rate"].value)


def test_harmonic_mean_and_complement():
    f1 = Measure(Metric("f1", "F1", "", "higher"), harmonic_mean(complement(ratio("wrong", "all")), ratio("a", "b")))
    table = CountTable.of([CountRow("x", {"wrong": 1, "all": 4, "a": 1, "b": 2})])
    assert measure(table, [f1])["f1"].value == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    nothing = CountTable.of([CountRow("x", {"wrong": 4, "all": 4, "b": 2})])
    assert measure(nothing, [f1])["f1"].value == 0


def test_differences_use_the_images_of_both_models_only():
    after = CountTable.of(rows([("a", 0, 2), ("b", 1, 2), ("only-after", 9, 9)]))
    before = CountTable.of(rows([("only-before", 9, 9), ("b", 2, 2), ("a", 2, 2)]))
    found = differences(after, before, [RATE])["rate"]
    assert found.value == pytest.approx(1 / 4 - 1)
    assert found.low <= found.value <= found.high


def test_p_values_equal_those_of_all_exchanges():
    after = [(0, 3), (1, 4), (1, 2), (0, 2), (2, 5), (0, 1)]
    before = [(2, 3), (1, 2), (2, 2), (1, 4), (2, 3), (1, 1)]

    def rate(answers):
        return sum(wrong for wrong, _ in answers) / sum(total for _, total in answers)

    def change(exchanged):
        sides = [(b, a) if swap else (a, b) for a, b, swap in zip(after, before, exchanged, strict=True)]
        return rate([first for first, _ in sides]) - rate([second for _, second in sides])

    observed = change([False] * 6)
    every = [abs(change(swaps)) >= abs(observed) - 1e-12 for swaps in itertools.product([False, True], repeat=6)]
    tables = [CountTable.of(rows([(str(n), *count) for n, count in enumerate(of)])) for of in (after, before)]
    found = differences(*tables, [RATE], resamples=20_000)["rate"]
    assert found.p == pytest.approx(np.mean(every), abs=0.01)


def test_equal_answers_do_not_differ():
    table = CountTable.of(rows([(str(n), n % 3, 3) for n in range(30)]))
    assert differences(table, table, [RATE])["rate"] == (0, 0, 0, 1)


def test_models_without_common_images_cannot_be_compared():
    with pytest.raises(ConfigError, match="same images"):
        differences(CountTable.of(rows([("a", 0, 1)])), CountTable.of(rows([("b", 0, 1)])), [RATE])
