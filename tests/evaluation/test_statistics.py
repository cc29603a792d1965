"""Intervals cover what they claim, and refuse what has none."""

import math

import numpy as np
import pytest

from jsfree.errors import ConfigError
from jsfree.evaluation.statistics import (
    bootstrap,
    divide,
    mean_interval,
    paired_difference,
    ratio_interval,
    resample_counts,
    wilson,
)


def test_mean_interval_matches_the_textbook_on_normal_data():
    values = np.random.default_rng(0).normal(5, 2, 2000)
    interval = mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)


def test_ratio_is_pooled_not_a_mean_of_ratios():
    assert ratio_interval([1, 0], [1, 9]).value == pytest.approx(0.1)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.arange(50.0)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_paired_difference_is_tighter_than_the_samples_spread():
    before = np.random.default_rng(1).normal(0, 10, 500)
    interval = paired_difference(before, before + 1)
    assert interval == pytest.approx((1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="same samples"):
        paired_difference([1.0, 2.0], [1.0])


def test_resamples_are_as_large_as_the_sample():
    counts = resample_counts(30, 20, 0)
    assert counts.shape == (20, 30)
    assert (counts.sum(1) == 30).all()


def test_an_undefined_ratio_is_nan_and_no_samples_are_an_error():
    assert all(math.isnan(figure) for figure in ratio_interval([0, 0], [0, 0]))
    assert np.isnan(divide(np.array([1.0]), np.array([0.0]))).all()
    with pytest.raises(ConfigError, match="no samples"):
        bootstrap(np.zeros((0, 2)), lambda sums: sums[:, 0])


@pytest.mark.parametrize(("successes", "total", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775)])
def test_wilson_reference_values(successes, total, low, high):
    interval = wilson(successes, total)
    assert interval.value == successes / total
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)


def test_wilson_limits():
    assert math.isnan(wilson(0, 0).value)
    with pytest.raises(ConfigError, match="impossible"):
        wilson(3, 2)
