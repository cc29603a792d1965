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
from jsfree.evaluation.statistics import RESAMPLES, UNDEFINED, Z95, Interval, mean_interval, ratio_interval
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
            f"none of the {len(rows)} captions has a sentence to score", "read some: the captioner may be broken"
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
