"""Agreement of two scorers, and gaps that do not depend on their scales."""

import math

import numpy as np
import pytest

from jsfree.stages.agreement import agreement, cohens_kappa, disagree, joint_differences, spread

DIFFERENCES = np.array([[0.3, 0.04], [-0.1, -0.02], [0.2, -0.01], [-0.05, 0.03], [0.0, 0.01]])


def test_scorers_disagree_if_exactly_one_inverts_and_a_tie_does_not_invert():
    assert disagree(DIFFERENCES).tolist() == [False, False, True, True, False]
    assert not disagree(DIFFERENCES[:, :1]).any()


def test_the_gap_is_a_mean_in_units_of_the_spreads():
    first, second = (math.sqrt(sum(x * x for x in column) / 5) for column in DIFFERENCES.T)
    assert spread(DIFFERENCES) == pytest.approx([first, second])
    joint = joint_differences(DIFFERENCES, spread(DIFFERENCES))
    assert joint == pytest.approx([(a / first + b / second) / 2 for a, b in DIFFERENCES])


def test_the_gap_does_not_depend_on_the_scale_of_a_scorer():
    """SigLIP's cosines have other magnitudes than CLIP's."""
    scaled = DIFFERENCES * [1, 7.3]
    plain, other = (joint_differences(each, spread(each)) for each in (DIFFERENCES, scaled))
    assert other == pytest.approx(plain)
    assert agreement(scaled).kappa == agreement(DIFFERENCES).kappa


def test_the_gap_of_one_scorer_is_its_own_difference():
    one = DIFFERENCES[:, :1]
    assert joint_differences(one, spread(one)).tolist() == one[:, 0].tolist()


def test_a_scorer_without_any_difference_adds_nothing():
    flat = np.array([[0.2, 0.0], [-0.4, 0.0]])
    assert np.isfinite(joint_differences(flat, spread(flat))).all()
    assert spread(np.empty((0, 2))).tolist() == [1, 1]


def test_kappa_of_a_published_example():
    """Two readers of 50 proposals, 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: kappa is 0.4."""
    first = np.array([True] * 25 + [False] * 25)
    second = np.array([True] * 20 + [False] * 5 + [True] * 10 + [False] * 15)
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    assert cohens_kappa(first, first) == 1
    assert cohens_kappa(first, ~first) == -1
    assert cohens_kappa(first, np.array([True, False] * 25)) == pytest.approx(0.04)
    assert cohens_kappa(np.zeros(3, bool), np.zeros(3, bool)) is None
    assert cohens_kappa(np.zeros(0, bool), np.zeros(0, bool)) is None


def test_the_four_kinds_of_pairs_are_counted():
    found = agreement(DIFFERENCES)
    assert (found.pairs, found.both_inverted, found.first_inverted, found.second_inverted) == (5, 1, 1, 1)
    assert found.share == pytest.approx(0.6)
    assert agreement(np.empty((0, 2))).share is None
