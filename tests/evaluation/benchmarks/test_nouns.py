"""Base forms of words: what the original singulariser and WordNet return, faults included."""

import pytest

from jsfree.evaluation.benchmarks.nouns import CaptionLemmas, NounLemmas, singular
from jsfree.evaluation.benchmarks.vocabulary import built_in

WORDS = built_in().single_words | {"smartphone", "canoe", "thief", "tie", "ski", "skateboard", "seat"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *(("dogs", "dog"), ("benches", "bench"), ("boxes", "box"), ("puppies", "puppy"), ("knives", "knife")),
        *(("people", "person"), ("women", "woman"), ("men", "man"), ("children", "child"), ("geese", "goose")),
        *(("mice", "mouse"), ("oxen", "ox"), ("buses", "bus"), ("calves", "calf"), ("leaves", "leaf")),
        *(("scissors", "scissors"), ("luggage", "luggage"), ("shoes", "shoe"), ("wine", "wine"), ("taxi", "taxi")),
        # Faults of the original that its published numbers contain.
        *(("bus", "bu"), ("tennis", "tenni"), ("glass", "glas"), ("ties", "ty"), ("canoes", "cano")),
        *(("collies", "collies"), ("magpies", "magpy"), ("is", "is"), ("as", "as")),
    ],
)
def test_singular(word, expected):
    assert singular(word) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *(("dogs", "dog"), ("buses", "bus"), ("bus", "bus"), ("benches", "bench"), ("puppies", "puppy")),
        *(("women", "woman"), ("children", "child"), ("mice", "mouse"), ("glasses", "glass"), ("knives", "knife")),
        *(("thieves", "thief"), ("canoes", "canoe"), ("ties", "tie"), ("policemen", "policeman")),
        # WordNet has "men" and "vas" as nouns, and lacks some new words.
        *(("men", "men"), ("vases", "vas"), ("sports", "sport"), ("skis", "ski"), ("smartphones", "smartphones")),
    ],
)
def test_noun_lemmas(word, expected):
    assert NounLemmas(WORDS)(word) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two people are skiing", "two people are ski"),
        ("a skateboarding trick", "a skateboard trick"),
        ("an impressive skateboarding trick", "an impressive skateboarding trick"),
        ("seated in a seating area", "seat in a seating area"),
        ("her hair is tied , she is tying", "her hair is tie , she is tie"),
        ("dogs resting on benches", "dog resting on bench"),
    ],
)
def test_caption_lemmas(text, expected):
    assert " ".join(CaptionLemmas(WORDS)(text.split())) == expected
