"""Label-free figures of captions that are easy to count by hand."""

import json

import numpy as np
import pytest

from jsfree.errors import ConfigError, StageError
from jsfree.evaluation import labelfree


def caption(*sentences, scores=None, finish="stop", text=None):
    scores = scores or [0.3] * len(sentences)
    scored = [{"text": sentence, "score": score} for sentence, score in zip(sentences, scores, strict=True)]
    mean = sum(scores) / len(scores) if scores else 0.0
    return {"text": " ".join(sentences) if text is None else text, "finish": finish, "sentences": scored, "score": mean}


def value(figures, name):
    return pytest.approx(figures[name]["value"])


def test_figures_of_a_small_corpus():
    rows = [
        caption("A red cup.", "a RED  cup!", "A dog.", scores=[0.3, 0.3, 0.1]),
        caption("A cat.", scores=[0.2]),
        caption(text=" "),
        caption("A red", finish="length", scores=[0.4]),
    ]
    figures = labelfree.summarise(rows, low_score=0.2)
    assert value(figures, "clip_score") == (0.7 / 3 + 0.2 + 0.4) / 3
    assert value(figures, "low_clip_sentences") == 1 / 5
    assert value(figures, "sentences") == 5 / 4
    assert value(figures, "words") == (8 + 2 + 0 + 2) / 4
    assert value(figures, "repeated_sentences") == 1 / 4
    # a-red red-cup cup-a a-red red-cup cup-a a-dog | a-cat | | a-red
    assert value(figures, "distinct_2") == 5 / 9
    assert value(figures, "truncated") == 1 / 4
    assert value(figures, "empty") == 1 / 4


def test_every_interval_contains_its_value_and_is_valid_json():
    rng = np.random.default_rng(0)
    words = ["red", "blue", "cup", "dog", "cat", "car", "tree", "there", "is", "a"]
    rows = [caption(" ".join(rng.choice(words, 6)) + ".", scores=[rng.normal(0.3, 0.05)]) for _ in range(60)]
    figures = labelfree.summarise(rows, labelfree.low_score_threshold(rows))
    for interval in figures.values():
        assert interval["low"] <= interval["value"] <= interval["high"]
    assert figures["clip_score"]["low"] < figures["clip_score"]["high"]
    assert figures["distinct_2"]["low"] < figures["distinct_2"]["high"]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert labelfree.summarise(rows, 0.2) == labelfree.summarise(rows, 0.2)


def test_a_tenth_of_the_sentences_is_below_the_threshold():
    rows = [caption("a", "b", scores=[index / 200, index / 200 + 0.0025]) for index in range(100)]
    low = labelfree.low_score_threshold(rows)
    assert labelfree.summarise(rows, low)["low_clip_sentences"]["value"] == pytest.approx(0.1)


def test_the_same_sentences_are_low_with_a_scorer_of_another_scale():
    scores = np.random.default_rng(1).normal(0.25, 0.03, 400).tolist()
    shares = []
    for scale in (1.0, 0.3):
        low = labelfree.low_score_threshold([caption("A cup.", scores=[scale * score]) for score in scores[:200]])
        after = [caption("A cup.", scores=[scale * (score - 0.01)]) for score in scores[200:]]
        shares.append(labelfree.summarise(after, low, 50)["low_clip_sentences"]["value"])
    assert shares[0] == shares[1] > 0


def test_jackknife_of_distinct_bigrams_equals_leaving_captions_out():
    captions = [labelfree.bigrams(text) for text in ("a b c", "a b d", "e f g h", "", "a b c d")]
    interval = labelfree.distinct_share(captions)

    def share(of):
        flat = [bigram for caption in of for bigram in caption]
        return len(set(flat)) / len(flat)

    left_out = [share(captions[:index] + captions[index + 1 :]) for index in range(len(captions))]
    variance = 4 / 5 * sum((each - np.mean(left_out)) ** 2 for each in left_out)
    assert interval.value == pytest.approx(share(captions))
    assert interval.value - interval.low == pytest.approx(1.959964 * variance**0.5)


def test_empty_captions_are_counted():
    figures = labelfree.summarise([caption(text=""), caption(text="")], 0.2)
    assert figures["empty"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert figures["clip_score"] == figures["distinct_2"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_no_captions_or_no_sentences_is_an_error():
    with pytest.raises(ConfigError, match="no captions"):
        labelfree.summarise([], 0.2)
    with pytest.raises(StageError, match="none of the 1 captions has a sentence"):
        labelfree.low_score_threshold([caption(text="")])
