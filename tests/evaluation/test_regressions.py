import math

import pytest

from jsfree.errors import ConfigError
from jsfree.evaluation.regressions import distinct, ngrams, perplexity, repeated_share, summarise_texts


def test_ngrams_ignore_case_and_punctuation():
    assert ngrams("A dog, a DOG.", 2) == [("a", "dog"), ("dog", "a"), ("a", "dog")]
    assert ngrams("one two", 3) == []


def test_distinct_counts_different_ngrams_over_all():
    assert distinct(["a b a b", "a c"], 1).value == pytest.approx(3 / 6)
    assert distinct(["a b a b", "a c"], 2).value == pytest.approx(3 / 4)  # ab ba ab ac
    assert math.isnan(distinct(["a"], 2).value)


def test_repetition_within_a_text():
    assert repeated_share("a b c d e") == 0.0
    assert repeated_share("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated_share("a a a a a a a a") == pytest.approx(4 / 5)
    assert repeated_share("short") == 0.0


def test_perplexity_weights_every_token_equally():
    uniform = perplexity([[math.log(1 / 50)] * 3, [math.log(1 / 50)] * 7])
    assert uniform.value == pytest.approx(50)
    assert uniform.low == pytest.approx(50)
    assert perplexity([[math.log(0.5)] * 3, [math.log(0.25)]]).value == pytest.approx(2 ** (5 / 4))
    spread = perplexity([[-0.1] * 5, [-3.0] * 5, [-1.0] * 5])
    assert spread.low < spread.value < spread.high


def test_a_model_that_repeats_itself_is_less_varied_and_more_repetitive():
    before = summarise_texts(["There is a red cup on the left.", "We see a blue dog near the tree."])
    after = summarise_texts(["There is a cup there is a cup there is a cup", "There is a cup there is a cup"])
    assert after["distinct_2"]["value"] < before["distinct_2"]["value"]
    assert before["repeated_4grams"]["value"] == 0 < after["repeated_4grams"]["value"]
    assert before["words"]["value"] == 8
    with pytest.raises(ConfigError, match="no texts"):
        summarise_texts([])
