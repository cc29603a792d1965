"""What self-improvement may cost elsewhere: variety, repetition and length of texts, and perplexity of known answers.

Pure functions; intervals are 95 %. A model that hallucinates less because it repeats safe phrases, says less, or has
forgotten how to answer shows it here.

Shapes: N texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from jsfree.errors import ConfigError
from jsfree.evaluation.labelfree import distinct_share
from jsfree.evaluation.statistics import RESAMPLES, FloatArray, Interval, bootstrap, divide, mean_interval
from jsfree.stages.sentences import words

Ngram = tuple[str, ...]
REPEATED_WORDS = 4
"""Length of the n-grams whose repetition within a text is measured."""


def ngrams(text: str, length: int) -> list[Ngram]:
    """Runs of ``length`` neighbouring words, regardless of case and punctuation."""
    found = words(text)
    return [tuple(found[start : start + length]) for start in range(len(found) - length + 1)]


def distinct(texts: Sequence[str], length: int) -> Interval:
    """Distinct-n (Li et al. 2016, arXiv 1510.03055): different n-grams over all n-grams of the texts.

    It falls as the number of texts grows: compare equal numbers of texts.
    """
    return distinct_share([ngrams(text, length) for text in texts])


def repeated_share(text: str, length: int = REPEATED_WORDS) -> float:
    """Share of a text's n-grams that occurred in it before; 0 for a text without n-grams."""
    found = ngrams(text, length)
    return (len(found) - len(Counter(found))) / len(found) if found else 0.0


def perplexity(logps: Sequence[Sequence[float]], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Perplexity of answers by a model: exp of the mean negative log-probability of a token.

    For a regression the answers are the seed's own, to text prompts without an image, scored by each model.

    Args:
        logps: natural log-probabilities of the tokens of each answer.

    Raises:
        ConfigError: there are no answers.
    """
    columns = [(float(np.sum(answer)), float(len(answer))) for answer in logps]

    def statistic(sums_RK: FloatArray) -> FloatArray:
        return np.asarray(np.exp(-divide(sums_RK[:, 0], sums_RK[:, 1])), np.float64)

    return bootstrap(np.array(columns).reshape(len(columns), 2), statistic, resamples, seed)


def summarise_texts(texts: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, dict[str, float]]:
    """Variety, repetition and length of texts, each ``{"value", "low", "high"}``.

    ``distinct_1`` to ``distinct_3``: see ``distinct``; ``repeated_4grams``: mean of ``repeated_share``; ``words``: mean
    number of words separated by blanks.

    Raises:
        ConfigError: there are no texts.
    """
    if not texts:
        raise ConfigError("there are no texts to summarise", "pass at least one")
    intervals = {f"distinct_{length}": distinct(texts, length) for length in (1, 2, 3)}
    intervals["repeated_4grams"] = mean_interval([repeated_share(text) for text in texts], resamples, seed)
    intervals["words"] = mean_interval([len(text.split()) for text in texts], resamples, seed)
    return {name: interval.as_json() for name, interval in intervals.items()}
