"""Claims are specific words that depend on the image; words with similar embeddings are one claim."""

import math

import numpy as np
import pytest

from jsfree.stages.claims import Claims, Substitutions, WordStatistics, merge, similar_words
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


def test_words_are_similar_to_more_frequent_ones_whatever_all_embeddings_share():
    directions = np.eye(4, 8)
    common = 5 * np.eye(8)[7]
    vectors = common + np.array([directions[0], directions[1], directions[0] + 0.1, directions[2], directions[3]])
    words = ["sofa", "cup", "couch", "dog", "cow"]
    assert similar_words(words, vectors.astype(np.float32)) == {"couch": ["sofa"]}


def test_a_word_that_is_replaced_replaces_no_other():
    """A chain of similar words does not become one claim."""
    similar = {"b": ["a"], "c": ["b"], "d": ["b", "a"]}
    assert merge(similar, lambda word, other: True) == {"b": "a", "d": "a"}
    assert merge(similar, lambda word, other: (word, other) != ("b", "a")) == {"c": "b", "d": "b"}


def captions(*texts: str, high: str = "") -> list:
    """The sentences of an image's captions, each of which ends with a full stop."""
    roles = {f"sample-{number}": text for number, text in enumerate(texts)} | {"high": high}
    return [
        said(*sentence.split(), role=role)
        for role, text in roles.items()
        for sentence in text.split(".")
        if sentence.strip()
    ]


ELSEWHERE = [captions("a cow.", "a cow.", high="a lamp.")] * 20


@pytest.mark.parametrize(
    ("words", "image", "expected"),
    [
        (("couch", "sofa"), captions("a couch. a cup.", "a sofa. a cup.", "a sofa."), True),
        (("trumpet", "stage"), captions("a stage. a trumpet.", "a trumpet. a stage.", "a stage."), False),
        (("teddy", "bear"), captions("a teddy bear. a cup.", "a bear.", "a teddy bear."), True),
        (("couch", "sofa"), captions("a couch.", "a cup.", high="a sofa."), False),
        (("couch", "sofa"), captions("a couch."), False),
    ],
    ids=["in place of each other", "together", "a compound", "only at the high ratio", "one caption"],
)
def test_synonyms_are_said_in_place_of_each_other(words, image, expected):
    word, other = words
    assert Substitutions.count([image, *ELSEWHERE], {word: [other]}).are_synonyms(word, other) == expected


def test_a_word_that_many_captions_contain_is_no_synonym_of_one_that_few_do():
    """Both rooms are said of the image once, by mistake, but one of them is said of half of all images."""
    image = captions("a bedroom.", "a kitchen.", "a bedroom.", "a bedroom.", "a bedroom.")
    kitchens = [captions("a kitchen.", "a kitchen.")] * 20
    counted = Substitutions.count([image, *ELSEWHERE, *kitchens], {"bedroom": ["kitchen"]})
    assert not counted.are_synonyms("bedroom", "kitchen")


def test_similar_words_are_one_claim_only_where_they_replace_each_other():
    sofas = [captions("a sofa.", "a couch.")] * 3
    stages = [captions("a stage. a trumpet.", "a stage. a trumpet.")] * 4
    images = [*sofas, *stages, *ELSEWHERE * 4]
    statistics = WordStatistics.count(sentence for image in images for sentence in image)

    def embed(words):
        kinds = {"sofa": 0, "couch": 0, "stage": 1, "trumpet": 1}
        return np.eye(12, dtype=np.float32)[[kinds.get(word, 2 + number) for number, word in enumerate(words)]]

    found = Claims.of(statistics, images, embed).by_word
    assert {word: found[word] for word in ("sofa", "couch", "stage", "trumpet")} == {
        "sofa": "couch", "couch": "couch", "stage": "stage", "trumpet": "trumpet"
    }  # fmt: skip


def test_only_specific_words_are_embedded():
    statistics = round_of({"a": 80, "cup": 4, "dog": 3, "beside": 4}, {"cup": -3.0, "dog": -3.0, "beside": -1.0})
    asked = []

    def embed(words):
        asked.append(list(words))
        return np.eye(len(words), 5, dtype=np.float32)

    assert Claims.of(statistics, embed=embed).by_word == {"cup": "cup", "dog": "dog"}
    assert asked == [["cup", "dog"]]


def test_stored_claims_are_read_back():
    assert Claims.from_json(CLAIMS.as_json()) == CLAIMS
