"""The verifier separates two kinds of claims without labels, and its zero point is where they are rarest."""

import math

import numpy as np
import pytest

from jsfree.errors import StageError
from jsfree.stages.candidate_sentences import Sentence
from jsfree.stages.verification import Claims, Verifier, fit_verifier, pool, sentence_logit, valley


def said(*tokens: int, cosine: float = 0.0, logp: float = -1.0, role: str = "low") -> Sentence:
    return Sentence(" ".join(map(str, tokens)), tokens, cosine, (logp,) * len(tokens), role)


def two_kinds(seed: int, true: int = 400, false: int = 600):
    """Evidence of true and of false claims: correlated Gaussians, as cosines and probabilities per token."""
    rng = np.random.default_rng(seed)
    covariance = [[0.01, 0.003], [0.003, 0.02]]
    evidence = np.concatenate(
        [
            rng.multivariate_normal([0.6, 0.9], covariance, true),
            rng.multivariate_normal([0.2, 0.3], covariance, false),
        ]
    )
    return evidence, np.arange(true + false) < true


def test_a_sentence_claims_its_rarest_token():
    sentences = [said(1, 2, 3), said(1, 2, 4), said(5, 2, 1), said(3, 1)]
    claims = Claims.count(sentences)
    assert [claims(sentence) for sentence in sentences] == [(3,), (4,), (5,), (3,)]
    assert claims(said(1, 4, 99)) == (99,)  # never seen: rarer than any


def test_a_token_counts_once_a_sentence():
    assert Claims.count([said(7, 7, 7), said(8, 7)]).frequencies == {7: 2, 8: 1}


def test_evidence_is_pooled_over_the_sentences_that_make_a_claim():
    sentences = [said(1, 3, cosine=0.2, logp=-0.1), said(2, 3, cosine=0.5, logp=-2.0), said(1, 4, cosine=0.9)]
    claims = Claims({1: 9, 2: 9, 3: 2, 4: 1})
    assert pool(sentences, claims) == {3: (0.5, pytest.approx(math.exp(-0.1))), 4: (0.9, pytest.approx(math.exp(-1.0)))}


def test_the_log_odds_are_those_of_the_true_mixture():
    """Linear discriminant analysis with the true parameters, up to the zero point."""
    evidence, _ = two_kinds(0, 40_000, 60_000)
    inverse = np.linalg.inv([[0.01, 0.003], [0.003, 0.02]])
    weights = inverse @ (np.array([0.6, 0.9]) - np.array([0.2, 0.3]))
    assert fit_verifier(evidence).weights_F == pytest.approx(weights, rel=0.05)


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


def test_the_zero_point_is_the_valley_even_with_heavy_tails():
    rng = np.random.default_rng(0)
    low, high = -8 + 2 * rng.standard_t(3, 6000), 7 + rng.standard_t(3, 4000)
    zero = valley(np.concatenate([low, high]), -8.0, 7.0)
    assert 0 < zero < 6


def test_a_third_kind_beyond_the_two_means_does_not_move_the_zero_point():
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(-5, 1.5, 6000), rng.normal(5, 1.5, 4000)])
    more = np.concatenate([two, rng.normal(20, 1, 3000), rng.normal(-30, 1, 30)])
    assert valley(more, -6.0, 9.0) == pytest.approx(valley(two, -6.0, 9.0), abs=1.0)


def test_a_sample_with_one_mode_has_no_valley():
    assert valley(np.random.default_rng(0).normal(5.0, 1.0, 5000), 4.0, 6.0) == 0.0


def test_too_few_claims_are_refused():
    with pytest.raises(StageError, match=r"3 claims of sentences are too few.*; use more images"):
        fit_verifier(np.zeros((3, 2)))


def test_signals_that_do_not_agree_are_refused():
    evidence, _ = two_kinds(0)
    with pytest.raises(StageError, match=r"do not separate the same two kinds of claims; verify with one signal"):
        fit_verifier(evidence * [1.0, -1.0] + [0.0, 1.0])


def test_a_sentence_is_as_certain_as_its_least_certain_claim():
    class Both(Claims):
        def __call__(self, sentence):
            return tuple(sorted(sentence.token_ids))

    assert sentence_logit(said(1, 2), {1: 3.0, 2: -1.0}, Both({})) == -1.0


def test_a_stored_verifier_is_read_back():
    verifier = Verifier((8.5, 11.25), -3.125)
    assert Verifier.from_json(verifier.as_json()) == verifier
