"""Claims are rare words, with their probabilities; words with similar embeddings are one claim."""

import math

import numpy as np
import pytest

from jsfree.stages.claims import Claims, WordStatistics, merge_similar
from tests.support.sentences import said

COUNTS = {"a": 90, "is": 80, "near": 40, "cup": 3, "dog": 2, "couch": 2, "sofa": 4}


def test_every_rare_word_of_a_sentence_is_a_claim():
    claims = Claims(COUNTS, 100)
    assert claims(said("a", "dog", "is", "near", "a", "cup")) == ("cup", "dog")
    assert claims(said("a", "zebra")) == ("zebra",)  # never seen: rarer than any


def test_a_sentence_without_rare_words_claims_its_rarest():
    assert Claims(COUNTS, 100)(said("a", "is", "near")) == ("near",)


def test_a_word_counts_once_a_sentence():
    statistics = WordStatistics.count([said("cup", "cup", "a", logp=-1.0), said("a", logp=-3.0)])
    assert statistics.sentences == 2
    assert statistics.frequencies == {"cup": 1, "a": 2}
    means = statistics.mean_probabilities(Claims.of(statistics))
    assert means == {"cup": pytest.approx(math.exp(-1)), "a": pytest.approx((math.exp(-1) + math.exp(-3)) / 2)}


def test_the_mean_probability_of_a_claim_is_over_all_its_words():
    statistics = WordStatistics.count([said("sofa", logp=-1.0), said("sofa", logp=-1.0), said("couch", logp=-4.0)])
    means = statistics.mean_probabilities(Claims(statistics.frequencies, 3, {"couch": "sofa"}))
    assert means == {"sofa": pytest.approx((2 * math.exp(-1) + math.exp(-4)) / 3)}


def test_a_claim_is_as_probable_as_its_word_and_its_sentence():
    sentence = said("a", "cup", "is", "near", logp=-1.0)
    sentence.word_logps["cup"] = -4.0
    assert Claims(COUNTS, 100).probabilities(sentence) == {"cup": pytest.approx(math.exp((-4.0 - 1.0) / 2))}


def test_synonyms_are_one_claim_with_the_higher_probability():
    sentence = said("a", "couch", "is", "near", "a", "sofa", logp=-1.0)
    sentence.word_logps["couch"] = -3.0
    claims = Claims(COUNTS, 100, {"couch": "sofa"})
    assert claims.probabilities(sentence) == {"sofa": pytest.approx(math.exp(-1.0))}
    assert claims(said("a", "couch")) == claims(said("a", "sofa"))


def test_a_word_is_replaced_by_the_most_frequent_similar_one():
    """Embeddings share a large component, which must not make all words similar."""
    directions = np.eye(4, 8)
    common = 5 * np.eye(8)[7]
    vectors = common + np.array([directions[0], directions[1], directions[0] + 0.1, directions[2], directions[3]])
    words = ["sofa", "cup", "couch", "dog", "cow"]
    assert merge_similar(words, vectors.astype(np.float32)) == {"couch": "sofa"}


def test_a_word_that_is_replaced_replaces_no_other():
    """Similar to its neighbours but not to each other: a chain does not become one claim."""
    angles = np.radians([0, 40, 80, 180, 220, 260])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    merged = merge_similar(["a", "b", "c", "d", "e", "f"], vectors - vectors.mean(0))
    assert merged == {"b": "a", "e": "d"}


def test_only_rare_words_are_embedded():
    statistics = WordStatistics.count([said("a", word) for word in ("cup", "dog") for _ in range(30)])
    statistics.frequencies["cow"] = statistics.frequencies["ox"] = 2
    asked = []

    def embed(words):
        asked.append(list(words))
        return np.ones((len(words), 3), np.float32)

    Claims.of(statistics, embed)
    assert asked == [["cow", "ox"]]


def test_stored_claims_are_read_back():
    claims = Claims(COUNTS, 100, {"couch": "sofa"})
    assert Claims.from_json(claims.as_json()) == claims
