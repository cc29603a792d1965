"""Intervals: reference values, coverage, and undefined cases."""

import math

import numpy as np
import pytest

from jsfree.errors import ConfigError
from jsfree.evaluation.statistics import (
    bootstrap,
    divide,
    mean_interval,
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


def test_ratio_is_pooled():
    assert ratio_interval([1, 0], [1, 9]).value == pytest.approx(0.1)


def test_the_seed_determines_the_interval():
    values = np.arange(50.0)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_resamples_have_the_size_of_the_sample():
    counts = resample_counts(30, 20, 0)
    assert counts.shape == (20, 30)
    assert (counts.sum(1) == 30).all()


def test_an_undefined_ratio_is_nan_and_no_samples_is_an_error():
    assert all(math.isnan(figure) for figure in ratio_interval([0, 0], [0, 0]))
    assert np.isnan(divide(np.array([1.0]), np.array([0.0]))).all()
    with pytest.raises(ConfigError, match="no samples"):
        bootstrap(np.zeros((0, 2)), lambda sums: sums[:, 0])


@pytest.mark.parametrize(("successes", "total", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775)])
def test_wilson_matches_reference_values(successes, total, low, high):
    interval = wilson(successes, total)
    assert interval.value == successes / total
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("successes", "total"), [(1, 64), (16, 64), (63, 64), (2, 5)])
def test_wilson_bound_is_z_standard_errors_from_the_share(successes, total):
    bound = wilson(successes, total, 1.645).low
    share = successes / total
    assert 0 < bound < share
    assert (share - bound) / math.sqrt(bound * (1 - bound) / total) == pytest.approx(1.645)


def test_wilson_at_its_limits():
    assert wilson(0, 64, 1.645).low == 0
    assert math.isnan(wilson(0, 0).value)
    with pytest.raises(ConfigError, match="impossible"):
        wilson(3, 2)
