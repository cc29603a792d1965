"""The distributions and the order of hallucination ratios, which do not depend on placement."""

import numpy as np
import pytest

from jsfree.config import Ratios
from jsfree.stages.ratios import draw_ratios


def drawn(settings: Ratios) -> np.ndarray:
    return np.array([draw_ratios(settings, 0, 1, f"sample-{i}") for i in range(4000)])


def test_gaussian_pairs_are_ordered_draws_clipped_to_the_unit_interval():
    pairs = drawn(Ratios(winner="drawn"))
    assert (pairs[:, 0] <= pairs[:, 1]).all()
    assert pairs.min() >= 0
    assert pairs.max() <= 1
    assert pairs.mean() == pytest.approx(0.5, abs=0.01)
    assert pairs.std() == pytest.approx(0.15, abs=0.01)
    wide = drawn(Ratios(winner="drawn", std=2.0))
    assert ((wide == 0) | (wide == 1)).mean() > 0.5


def test_the_winner_can_be_decoded_without_the_prior():
    pairs = drawn(Ratios(winner="zero"))
    assert (pairs[:, 0] == 0).all()
    assert pairs[:, 1].mean() == pytest.approx(0.5, abs=0.01)


def test_fixed_and_uniform_distributions():
    assert (drawn(Ratios(distribution="fixed", winner="drawn", low=0.0, high=0.1)) == [0.0, 0.1]).all()
    uniform = drawn(Ratios(distribution="uniform", winner="drawn"))
    assert uniform.min() < 0.01
    assert uniform.max() > 0.99
    assert uniform[:, 0].mean() == pytest.approx(1 / 3, abs=0.02)  # the smaller of two uniforms


def test_a_draw_depends_only_on_seed_round_and_sample():
    settings = Ratios(winner="drawn")
    base = draw_ratios(settings, 0, 1, "a")
    assert base == draw_ratios(settings, 0, 1, "a")
    others = [draw_ratios(settings, 1, 1, "a"), draw_ratios(settings, 0, 2, "a"), draw_ratios(settings, 0, 1, "b")]
    assert base not in others
