"""Metrics of captions whose images have no labels: CLIP scores, lengths, repetition and variety.

None of them measures hallucination. They show whether captions fit their images better by CLIP's measure, and whether
shorter, repeated or broken captions are the price. Pure functions; resamples are drawn by a seed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from jsfree.errors import ConfigError, StageError
from jsfree.evaluation.metrics import LABEL_FREE
from jsfree.evaluation.statistics import (
    RESAMPLES,
    UNDEFINED,
    Z95,
    FloatArray,
    Interval,
    bootstrap,
    divide,
    mean_interval,
    ratio_interval,
)
from jsfree.schemas import ScoredCaptionRow
from jsfree.stages.sentences import count_repeated, words

LOW_SHARE = 0.10


def low_score_threshold(rows: Sequence[ScoredCaptionRow]) -> float:
    """The 10 % quantile of the sentence cosines of ``rows``, below which a sentence counts as low.

    Computed on the seed model's greedy captions and used for every model and mode of the run: the seed's share in
    greedy mode is 10 % by construction, and only the change is informative.

    Raises:
        StageError: no caption has a sentence.
    """
    scores = [sentence["score"] for row in rows for sentence in row["sentences"]]
    if not scores:
        raise StageError(
            f"none of the {len(rows)} captions has a sentence to score",
            "look at some of them: the captioner may not be able to answer the prompt",
        )
    return float(np.quantile(scores, LOW_SHARE))


def summarise(
    rows: Sequence[ScoredCaptionRow], low_score: float, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, float]]:
    """The metrics of ``label_free.json``, each ``{"value", "low", "high"}`` (95 %).

    ``clip_score``: mean cosine of captions that have a sentence; ``low_clip_sentences``: share of sentences below
    ``low_score``; ``sentences``, ``words``, ``repeated_sentences``: per caption; ``distinct_2``: different bigrams
    over bigrams of the corpus (falls as a corpus grows: compare equal numbers of captions); ``truncated``,
    ``empty``: shares of captions. Intervals are bootstraps over captions; that of ``distinct_2`` is a jackknife.
    An undefined metric (the score of no sentences) is 0 with the interval [0, 0].

    Raises:
        ConfigError: there are no captions.
    """
    if not rows:
        raise ConfigError("there are no captions to summarise", "pass at least one")
    scored = [row for row in rows if row["sentences"]]
    sentences = [len(row["sentences"]) for row in rows]
    low = [sum(sentence["score"] < low_score for sentence in row["sentences"]) for row in rows]
    means: dict[str, list[int]] = {
        "sentences": sentences,
        "words": [len(row["text"].split()) for row in rows],
        "repeated_sentences": [count_repeated([sentence["text"] for sentence in row["sentences"]]) for row in rows],
        "truncated": [int(row["finish"] == "length") for row in rows],
        "empty": [int(not row["text"].strip()) for row in rows],
    }
    intervals = {name: mean_interval(values, resamples, seed) for name, values in means.items()}
    intervals["clip_score"] = mean_interval([row["score"] for row in scored], resamples, seed) if scored else UNDEFINED
    intervals["low_clip_sentences"] = ratio_interval(low, sentences, resamples, seed)
    intervals["distinct_2"] = distinct_share([bigrams(row["text"]) for row in rows])
    return {metric.name: intervals[metric.name].as_json() for metric in LABEL_FREE}


def changes(
    before: Sequence[ScoredCaptionRow],
    after: Sequence[ScoredCaptionRow],
    low_score: float,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Changes of metrics between two models in the same mode, each ``{"value", "low", "high"}`` (95 %), by name.

    The captions are paired by sample, and intervals are bootstraps over pairs. ``clip_score`` is the mean difference
    over the pairs whose captions both have a sentence; ``low_clip_sentences``, ``repeated_sentences`` and ``truncated``
    are differences of the metrics of ``summarise``; ``words`` is the relative change of the number of words. An
    undefined change is 0 with the interval [0, 0].

    Raises:
        ConfigError: no sample has both captions.
    """
    known = {row["sample_id"]: row for row in before}
    pairs = [(known[row["sample_id"]], row) for row in after if row["sample_id"] in known]
    if not pairs:
        raise ConfigError("no image has captions of both models", "compare captions of the same samples")
    old_NK, new_NK = (
        np.array([caption_counts(pair[side], low_score) for pair in pairs], np.float64) for side in (0, 1)
    )
    words, sentences, low, repeated, truncated = range(old_NK.shape[1])
    scores = [new["score"] - old["score"] for old, new in pairs if old["sentences"] and new["sentences"]]
    more_NK = new_NK - old_NK

    def low_shares(sums_RK: FloatArray) -> FloatArray:
        return divide(sums_RK[:, 2], sums_RK[:, 3]) - divide(sums_RK[:, 0], sums_RK[:, 1])

    shares_NK = np.concatenate((old_NK[:, [low, sentences]], new_NK[:, [low, sentences]]), 1)
    intervals = {
        "clip_score": mean_interval(scores, resamples, seed) if scores else UNDEFINED,
        "low_clip_sentences": bootstrap(shares_NK, low_shares, resamples, seed),
        "words": ratio_interval(more_NK[:, words], old_NK[:, words], resamples, seed),
        "repeated_sentences": mean_interval(more_NK[:, repeated], resamples, seed),
        "truncated": mean_interval(more_NK[:, truncated], resamples, seed),
    }
    return {name: interval.as_json() for name, interval in intervals.items()}


def caption_counts(row: ScoredCaptionRow, low_score: float) -> tuple[int, int, int, int, int]:
    """Words, sentences, low sentences, repeated sentences, and whether the caption is truncated."""
    sentences = [sentence["text"] for sentence in row["sentences"]]
    low = sum(sentence["score"] < low_score for sentence in row["sentences"])
    return len(row["text"].split()), len(sentences), low, count_repeated(sentences), int(row["finish"] == "length")


def bigrams(text: str) -> list[tuple[str, str]]:
    """Pairs of neighbouring words, regardless of case and punctuation."""
    return list(pairwise(words(text)))


def distinct_share(captions: Sequence[Sequence[tuple[str, str]]]) -> Interval:
    """Different bigrams over all bigrams, with the jackknife's normal interval over captions.

    A bootstrap draws captions twice, which alone makes a corpus less varied: its whole interval would be below the
    value. The jackknife leaves one caption out at a time, and needs only the bigrams that no other caption has.
    """
    sources = Counter(bigram for caption in captions for bigram in set(caption))
    lengths = np.array([len(caption) for caption in captions], np.float64)
    own = np.array([sum(sources[bigram] == 1 for bigram in set(caption)) for caption in captions], np.float64)
    total, count = lengths.sum(), len(captions)
    if total == 0:
        return UNDEFINED
    value = len(sources) / total
    rest = total - lengths
    without = np.where(rest > 0, (len(sources) - own) / np.where(rest > 0, rest, 1), value)
    half = Z95 * math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    return Interval(value, max(0.0, value - half), min(1.0, value + half))
