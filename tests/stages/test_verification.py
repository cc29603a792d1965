"""The verifier separates two kinds of claims without labels."""

import math

import numpy as np
import pytest

from jsfree.errors import StageError
from jsfree.stages import verification
from jsfree.stages.claims import Claims
from jsfree.stages.verification import VALLEY_WEIGHT, Verifier, fit_verifier, pool, valley
from tests.support.sentences import said


def two_kinds(seed: int, true: int = 400, false: int = 600, *, correlated: bool = True):
    """Evidence of true and of false claims: two Gaussians, as cosines and probabilities."""
    rng = np.random.default_rng(seed)
    covariance = [[0.01, 0.003 * correlated], [0.003 * correlated, 0.02]]
    evidence = np.concatenate(
        [
            rng.multivariate_normal([0.6, 0.9], covariance, true),
            rng.multivariate_normal([0.2, 0.3], covariance, false),
        ]
    )
    return evidence, np.arange(true + false) < true


def test_evidence_is_pooled_over_the_sentences_that_make_a_claim():
    sentences = [said("a", "cup", cosine=0.2, logp=-0.1), said("the", "cup", cosine=0.5, logp=-2.0)]
    claims = Claims({"cup": "cup", "dog": "dog"}, {"a": 90, "the": 90, "cup": 2, "dog": 1})
    pooled = pool([*sentences, said("a", "dog", "cup", cosine=0.4, logp=-1.0)], claims)
    assert pooled == {"cup": (0.5, pytest.approx(math.exp(-0.1))), "dog": (0.4, pytest.approx(math.exp(-1.0)))}


def test_the_log_odds_are_those_of_the_true_mixture():
    """Signal by signal, the difference of the means over the variance; zero where both kinds are equally likely."""
    evidence, _ = two_kinds(0, 40_000, 60_000, correlated=False)
    verifier = fit_verifier(evidence)
    assert verifier.weights_F == pytest.approx([0.4 / 0.01, 0.6 / 0.02], rel=0.05)
    assert verifier.logit(0.4, 0.6) == pytest.approx(math.log(40 / 60), abs=1.5)


def test_no_weight_is_negative_where_a_full_covariance_would_make_one_so():
    """Signals so correlated that linear discriminant analysis subtracts the weaker one."""
    rng = np.random.default_rng(0)
    covariance = [[0.01, 0.012], [0.012, 0.02]]
    means = np.array([[0.35, 0.9], [0.2, 0.3]])
    assert (np.linalg.inv(covariance) @ (means[0] - means[1])).min() < 0
    evidence = np.concatenate([rng.multivariate_normal(mean, covariance, 2000) for mean in means])
    assert min(fit_verifier(evidence).weights_F) > 0


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("order", [1, -1])
def test_true_claims_are_separated_from_false_ones(seed, order):
    evidence, truth = two_kinds(seed)
    verifier = fit_verifier(evidence[::order])
    verdicts = np.array([verifier.logit(*each) > 0 for each in evidence])
    assert (verdicts == truth).mean() > 0.97


@pytest.mark.parametrize(("signals", "unused"), [("clip", 1), ("likelihood", 0)])
def test_a_signal_that_is_not_used_has_no_weight(signals, unused):
    evidence, truth = two_kinds(0)
    verifier = fit_verifier(evidence, signals)
    assert verifier.weights_F[unused] == 0.0
    verdicts = np.array([verifier.logit(*each) > 0 for each in evidence])
    assert 0.9 < (verdicts == truth).mean() < 1.0


def test_the_valley_is_found_even_with_heavy_tails():
    rng = np.random.default_rng(0)
    low, high = -8 + 2 * rng.standard_t(3, 6000), 7 + rng.standard_t(3, 4000)
    zero = valley(np.concatenate([low, high]), -8.0, 7.0)
    assert 0 < zero < 6


def test_a_third_kind_beyond_the_two_means_does_not_move_the_valley():
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(-5, 1.5, 6000), rng.normal(5, 1.5, 4000)])
    more = np.concatenate([two, rng.normal(20, 1, 3000), rng.normal(-30, 1, 30)])
    assert valley(more, -6.0, 9.0) == pytest.approx(valley(two, -6.0, 9.0), abs=1.0)


def test_a_sample_with_one_mode_has_no_valley():
    assert valley(np.random.default_rng(0).normal(5.0, 1.0, 5000), 4.0, 6.0) == 0.0


def test_the_zero_point_is_halfway_between_the_mixture_and_the_valley(monkeypatch):
    """Where false claims have a heavy tail towards true ones, the mixture's zero lets more of them pass."""
    rng = np.random.default_rng(0)
    false = np.concatenate([rng.normal(0.1, 0.04, 4000), rng.normal(0.25, 0.1, 2000)])
    evidence = np.stack([np.concatenate([false, rng.normal(0.7, 0.05, 4000)])] * 2, 1)

    def passing_cosine(weight: float) -> float:
        monkeypatch.setattr(verification, "VALLEY_WEIGHT", weight)
        verifier = fit_verifier(evidence, "clip")
        return -verifier.bias / verifier.weights_F[0]

    mixture, halfway, valley_alone = (passing_cosine(weight) for weight in (0.0, 0.5, 1.0))
    assert mixture + 0.02 < valley_alone
    assert 0.45 < valley_alone < 0.6  # the gap between the two kinds
    assert halfway == pytest.approx((mixture + valley_alone) / 2)
    assert halfway == pytest.approx(passing_cosine(VALLEY_WEIGHT))


def test_too_few_claims_are_refused():
    with pytest.raises(StageError, match=r"3 claims of sentences are too few.*; use more images"):
        fit_verifier(np.zeros((3, 2)))


def test_signals_that_do_not_agree_are_refused():
    evidence, _ = two_kinds(0)
    with pytest.raises(
        StageError, match=r"disagree on which claims are likely, so no verifier fits both; verify with one signal"
    ):
        fit_verifier(evidence * [1.0, -1.0] + [0.0, 1.0])


def test_a_stored_verifier_is_read_back():
    verifier = Verifier((8.5, 11.25), -3.125)
    assert Verifier.from_json(verifier.as_json()) == verifier
