"""What sentences claim: their rare words, with synonyms as one claim.

Words that occur in few of a round's sentences say something specific, mostly which objects are present. Each of them is
a claim of its sentence, so a sentence about several objects makes several claims. Two words are one claim if their CLIP
text embeddings are similar, so that a sentence about a sofa supports one about a couch.

Shape suffixes: W words, D embedding width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jsfree.stages.candidate_sentences import Sentence

RARE_SHARE = 0.05
"""Words in a smaller share of the sentences are rare."""
SIMILARITY = 0.7
"""Cosine, after subtracting the mean embedding, above which two words are one claim. Without the subtraction the
embeddings of any two words are similar."""

EmbedTexts = Callable[[Sequence[str]], NDArray[np.float32]]
"""Maps texts to embeddings, (W, D)."""


@dataclass
class WordStatistics:
    """How often the sentences of a round contain each word, and how certain the captioner is of it."""

    sentences: int = 0
    frequencies: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Number of sentences that contain the word."""
    probabilities: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Sum over these sentences of the probability of the word."""

    @classmethod
    def count(cls, sentences: Iterable[Sentence]) -> WordStatistics:
        """Count the words of all sentences of a round."""
        statistics = cls()
        for sentence in sentences:
            statistics.sentences += 1
            for word in sentence.word_logps:
                statistics.frequencies[word] += 1
                statistics.probabilities[word] += sentence.word_probability(word)
        return statistics

    def mean_probabilities(self, claims: Claims) -> dict[str, float]:
        """For each claim, the mean probability of its words where they occur."""
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for word, count in self.frequencies.items():
            claim = claims.merged.get(word, word)
            sums[claim] += self.probabilities[word]
            counts[claim] += count
        return {claim: total / counts[claim] for claim, total in sums.items()}


@dataclass(frozen=True)
class Claims:
    """Maps sentences to what they claim.

    Attributes:
        frequencies: number of sentences of the round that contain each word.
        sentences: number of sentences of the round.
        merged: the word that a word is replaced by, for words with a synonym that is more frequent.
    """

    frequencies: Mapping[str, int]
    sentences: int
    merged: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, statistics: WordStatistics, embed: EmbedTexts | None = None) -> Claims:
        """The claims of a round; without ``embed``, synonyms are different claims."""
        frequencies = dict(statistics.frequencies)
        rare = [word for word, count in frequencies.items() if count < RARE_SHARE * statistics.sentences]
        rare.sort(key=lambda word: (-frequencies[word], word))
        merged = merge_similar(rare, embed(rare)) if embed is not None and rare else {}
        return cls(frequencies, statistics.sentences, merged)

    def __call__(self, sentence: Sentence) -> tuple[str, ...]:
        """The claims of a sentence, sorted; sentences with equal claims say the same."""
        return tuple(sorted(self.probabilities(sentence)))

    def probabilities(self, sentence: Sentence) -> dict[str, float]:
        """The claims of a sentence, each with the geometric mean of two probabilities: the word's, and the sentence's.

        The word's is that of the claim itself, but depends on the order in which a caption names things. The sentence's
        is that per token.
        """
        limit = RARE_SHARE * self.sentences
        rare = [word for word in sentence.word_logps if self.frequencies.get(word, 0) < limit]
        if not rare and sentence.word_logps:
            rare = [min(sentence.word_logps, key=lambda word: (self.frequencies.get(word, 0), word))]
        found: dict[str, float] = {}
        for word in rare:
            claim = self.merged.get(word, word)
            probability = (sentence.word_probability(word) * sentence.probability) ** 0.5
            found[claim] = max(found.get(claim, 0.0), probability)
        return found

    def as_json(self) -> dict[str, Any]:
        """The claims as they are stored."""
        return {"sentences": self.sentences, "frequencies": dict(sorted(self.frequencies.items())),
                "merged": dict(sorted(self.merged.items()))}  # fmt: skip

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Claims:
        """The inverse of ``as_json``."""
        return cls(stored["frequencies"], stored["sentences"], stored["merged"])


def merge_similar(words: Sequence[str], vectors_WD: NDArray[np.float32]) -> dict[str, str]:
    """Find words that are similar to one before them, and return the first such word of each.

    A word that is itself replaced replaces no other.

    Args:
        words: the words, the most frequent first.
        vectors_WD: their embeddings.
    """
    centred_WD = vectors_WD - vectors_WD.mean(0)
    centred_WD /= np.linalg.norm(centred_WD, axis=1, keepdims=True) + 1e-12
    kept: list[int] = []
    kept_WD = np.empty_like(centred_WD)
    merged: dict[str, str] = {}
    for number, word in enumerate(words):
        similar = np.flatnonzero(kept_WD[: len(kept)] @ centred_WD[number] > SIMILARITY)
        if len(similar):
            merged[word] = words[kept[int(similar[0])]]
        else:
            kept_WD[len(kept)] = centred_WD[number]
            kept.append(number)
    return merged
