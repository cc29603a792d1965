"""Agreement against worked examples and independent formulas."""

import math

import numpy as np
import pytest

from jsfree.errors import ConfigError
from jsfree.judge.agreement import cohen_kappa, pearson, spearman


def test_kappa_of_a_worked_example():
    # 20 both yes, 5 only the first, 10 only the second, 15 both no: observed .7, expected .5
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(second, first) == pytest.approx(0.4)


def test_kappa_is_one_for_equal_judges_negative_for_opposite_ones_and_undefined_for_constant_ones():
    assert cohen_kappa([1, 2, 3], [1, 2, 3]) == 1.0
    assert cohen_kappa([1, 0, 1, 0], [0, 1, 0, 1]) == pytest.approx(-1.0)
    assert math.isnan(cohen_kappa([1, 1], [1, 1]))


def test_quadratic_kappa_equals_the_formula_by_moments():
    """Fleiss and Cohen 1973: 1 - E[(x - y)^2] / E[(x - y')^2], with y' independent of x."""
    rng = np.random.default_rng(0)
    first = rng.integers(1, 11, 200)
    second = np.clip(first + rng.integers(-2, 3, 200), 1, 10)
    chance = np.mean((first[:, None] - second[None, :]) ** 2.0)
    expected = 1 - np.mean((first - second) ** 2.0) / chance
    assert cohen_kappa(first.tolist(), second.tolist(), "quadratic") == pytest.approx(expected)
    assert cohen_kappa(first.tolist(), second.tolist(), "linear") < expected


def test_correlations_against_numpy():
    rng = np.random.default_rng(1)
    first = rng.normal(size=50)
    second = first + rng.normal(size=50)
    assert pearson(first, second) == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert spearman(first, np.exp(first)) == pytest.approx(1.0)
    ranks = [[1.5, 1.5, 3, 4], [1, 2.5, 2.5, 4]]
    assert spearman([5, 5, 7, 9], [0, 1, 1, 8]) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert math.isnan(pearson([1, 1, 1], [1, 2, 3]))


def test_judgements_of_other_items_are_refused():
    with pytest.raises(ConfigError, match="not 2 and 1; keep the items that both judged"):
        cohen_kappa([1, 2], [1])
    with pytest.raises(ConfigError, match="not 0 and 0"):
        pearson([], [])
    with pytest.raises(ConfigError, match="needs numbers"):
        cohen_kappa(["a", "b"], ["a", "b"], "linear")
