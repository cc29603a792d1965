"""Claims are specific words that depend on the image; words with similar embeddings are one claim."""

import math

import numpy as np
import pytest

from jsfree.stages.claims import Claims, WordStatistics, merge_similar
from tests.support.sentences import said

COUNTS = {"a": 90, "is": 80, "near": 40, "cup": 3, "dog": 2, "couch": 2, "sofa": 4}
NOUNS = {noun: noun for noun in ("cup", "dog", "couch", "sofa")}
CLAIMS = Claims(NOUNS, COUNTS)


def round_of(counts: dict[str, int], without_image: dict[str, float] | None = None) -> WordStatistics:
    """Statistics of sentences of one word each, of log-probability -1 with the image."""
    return WordStatistics.count(
        said(word, logp=-1.0, without_image=without_image) for word, count in counts.items() for _ in range(count)
    )


def test_every_specific_word_of_a_sentence_is_a_claim():
    assert CLAIMS(said("a", "dog", "is", "near", "a", "cup")) == ("cup", "dog")


def test_a_word_that_the_round_did_not_contain_is_a_claim():
    assert CLAIMS(said("a", "zebra", "near", "a", "cup")) == ("cup", "zebra")


def test_a_sentence_without_specific_words_claims_its_rarest():
    assert CLAIMS(said("a", "is", "near")) == ("near",)


def test_words_are_specific_if_they_are_rare_and_depend_on_the_image():
    counts = {"a": 80, "cup": 4, "dog": 3, "beside": 4, "ox": 2}
    statistics = round_of(counts, {"a": -9.0, "cup": -3.0, "dog": -0.2, "beside": -1.1})
    assert statistics.specific_words() == ["cup", "dog", "ox"]  # nothing is known of "ox"


def test_the_dependence_is_a_mean_over_the_sentences_in_which_it_is_known():
    sentences = [
        said("cup", logp=-1.0, without_image={"cup": -1.9}),
        said("cup", logp=-1.0, without_image={"cup": -0.7}),
        said("cup", logp=-math.inf, without_image={"cup": -1.0}),
        said("cup", logp=-1.0),
        *(said("a") for _ in range(200)),
    ]
    assert WordStatistics.count(sentences).specific_words() == ["cup"]  # (0.9 + 0.3) / 2 nats
    sentences[0] = said("cup", logp=-1.0, without_image={"cup": -1.5})
    assert WordStatistics.count(sentences).specific_words() == []


def test_a_word_counts_once_a_sentence():
    statistics = WordStatistics.count([said("cup", "cup", "a", logp=-1.0), said("a", logp=-3.0)])
    assert (statistics.sentences, statistics.frequencies) == (2, {"cup": 1, "a": 2})


def test_claims_of_words_that_are_nearly_always_certain_are_known():
    sentences = [said("sofa", logp=-0.01)] * 3 + [said("couch", logp=-2.0), said("kitchen", logp=-0.05)]
    statistics = WordStatistics.count(sentences)
    claims = Claims({"sofa": "sofa", "couch": "sofa", "kitchen": "kitchen"}, statistics.frequencies)
    assert statistics.is_uncertain(claims) == {"sofa": True, "kitchen": False}
    apart = Claims({}, statistics.frequencies)
    assert statistics.is_uncertain(apart) == {"sofa": False, "couch": True, "kitchen": False}


def test_the_probability_of_a_claim_is_a_quarter_that_of_its_word():
    """In logarithms; the rest is the sentence's, per token."""
    sentence = said("a", "cup", "is", "near", logp=-1.0)
    sentence.word_logps["cup"] = -4.0
    assert CLAIMS.probabilities(sentence) == {"cup": pytest.approx(math.exp(-4.0 / 4 - 1.0 * 3 / 4))}


def test_synonyms_are_one_claim_with_the_higher_probability():
    sentence = said("a", "couch", "is", "near", "a", "sofa", logp=-1.0)
    sentence.word_logps["couch"] = -3.0
    claims = Claims({**NOUNS, "couch": "sofa"}, COUNTS)
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


def test_only_specific_words_are_embedded():
    statistics = round_of({"a": 80, "cup": 4, "dog": 3, "beside": 4}, {"cup": -3.0, "dog": -3.0, "beside": -1.0})
    asked = []

    def embed(words):
        asked.append(list(words))
        return np.eye(len(words), 5, dtype=np.float32)

    assert Claims.of(statistics, embed).by_word == {"cup": "cup", "dog": "dog"}
    assert asked == [["cup", "dog"]]


def test_stored_claims_are_read_back():
    assert Claims.from_json(CLAIMS.as_json()) == CLAIMS
