"""What sentences claim: their specific words that depend on the image, with synonyms as one claim.

A word that few of a round's sentences contain says something specific, and a word whose probability changes without
the image says something about the image; mostly both name objects. Each such word is a claim of its sentence, so a
sentence about several objects makes several claims. Two words are one claim if their CLIP text embeddings are similar
and captions of one image use them in place of each other, so that a sentence about a sofa supports one about a couch.
Embeddings alone would merge words for things that are often together, such as a trumpet and a stage.

Shape suffixes: W words, D embedding width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jsfree.schemas import HIGH
from jsfree.stages.candidate_sentences import Sentence

RARE_SHARE = 0.05
"""Words in a smaller share of the sentences are specific."""
MIN_DEPENDENCE = 0.5
"""Mean absolute difference of a word's log-probabilities with and without the image, in nats, from which on it depends
on the image."""
CERTAIN_PROBABILITY = 0.9
"""The captioner is nearly always certain of claims whose words have a higher mean probability."""
WORD_WEIGHT = 0.25
"""Weight of the word's own log-probability in that of a claim; the other part is the sentence's, per token."""
SIMILARITY = 0.7
"""Cosine, after subtracting the mean embedding, above which two words are one claim. Without the subtraction the
embeddings of any two words are similar."""

IN_PLACE = 2.0
"""How many times more often than in the same caption, and than in any caption, one word must be said in the other
captions of an image in which the other word is said, so that they are synonyms."""

EmbedTexts = Callable[[Sequence[str]], NDArray[np.float32]]
"""Maps texts to embeddings, (W, D)."""


@dataclass
class WordStatistics:
    """How often a round's sentences contain each word, how probable it is, and how much it depends on the image."""

    sentences: int = 0
    frequencies: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Number of sentences that contain the word."""
    probabilities: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Sum over these sentences of the probability of the word."""
    differences: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Sum of the absolute differences of the word's log-probabilities with and without the image."""
    compared: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Number of these differences: sentences of which both are known."""

    @classmethod
    def count(cls, sentences: Iterable[Sentence]) -> WordStatistics:
        """Count the words of all sentences of a round."""
        statistics = cls()
        for sentence in sentences:
            statistics.sentences += 1
            for word, logp in sentence.word_logps.items():
                statistics.frequencies[word] += 1
                statistics.probabilities[word] += math.exp(logp)
                difference = abs(logp - sentence.unconditional_word_logps.get(word, math.nan))
                if math.isfinite(difference):
                    statistics.differences[word] += difference
                    statistics.compared[word] += 1
        return statistics

    def specific_words(self) -> list[str]:
        """Words that are rare and depend on the image, or may do so, the most frequent first."""
        limit = RARE_SHARE * self.sentences
        found = [
            word
            for word, count in self.frequencies.items()
            if count < limit and self._dependence(word) >= MIN_DEPENDENCE
        ]
        return sorted(found, key=lambda word: (-self.frequencies[word], word))

    def _dependence(self, word: str) -> float:
        """How much a word depends on the image, in nats; infinite if it is not known."""
        return self.differences[word] / self.compared[word] if word in self.compared else math.inf

    def is_uncertain(self, claims: Claims) -> dict[str, bool]:
        """For each possible claim, whether the captioner is not nearly always certain of its words."""
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for word, count in self.frequencies.items():
            claim = claims.by_word.get(word, word)
            sums[claim] += self.probabilities[word]
            counts[claim] += count
        return {claim: total < CERTAIN_PROBABILITY * counts[claim] for claim, total in sums.items()}


@dataclass(frozen=True)
class Claims:
    """Maps sentences to what they claim.

    Attributes:
        by_word: the claim of each specific word: the word itself, or a more frequent synonym.
        frequencies: number of sentences of the round that contain each word.
    """

    by_word: Mapping[str, str]
    frequencies: Mapping[str, int]

    @classmethod
    def of(
        cls, statistics: WordStatistics, images: Iterable[Iterable[Sentence]] = (), embed: EmbedTexts | None = None
    ) -> Claims:
        """The claims of a round.

        Args:
            statistics: of all sentences of the round.
            images: the sentences of each image, from which synonyms are found.
            embed: maps words to embeddings; without it, synonyms are different claims.
        """
        words = statistics.specific_words()
        by_word = dict(zip(words, words, strict=True))
        if embed is not None and words:
            similar = similar_words(words, embed(words))
            by_word |= merge(similar, Substitutions.count(images, similar).are_synonyms)
        return cls(by_word, dict(statistics.frequencies))

    def __call__(self, sentence: Sentence) -> tuple[str, ...]:
        """The claims of a sentence, sorted; sentences with equal claims say the same."""
        return tuple(sorted(self.probabilities(sentence)))

    def probabilities(self, sentence: Sentence) -> dict[str, float]:
        """The claims of a sentence with their probabilities, weighted geometric means of the word's and the sentence's.

        The word's is that of the claim itself, but depends on the order in which a caption names things. The sentence's
        is that per token. Words that the round did not contain are specific. A sentence without a specific word claims
        its rarest word.
        """
        logp_of_sentence = (1 - WORD_WEIGHT) * sentence.mean_logp
        words = [word for word in sentence.word_logps if word in self.by_word or word not in self.frequencies]
        if not words:
            words = [min(sentence.word_logps, key=lambda word: (self.frequencies[word], word))]
        found: dict[str, float] = {}
        for word in words:
            claim = self.by_word.get(word, word)
            probability = math.exp(WORD_WEIGHT * sentence.word_logps[word] + logp_of_sentence)
            found[claim] = max(found.get(claim, 0.0), probability)
        return found

    def as_json(self) -> dict[str, Any]:
        """The claims as they are stored."""
        return {"by_word": dict(sorted(self.by_word.items())), "frequencies": dict(sorted(self.frequencies.items()))}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Claims:
        """The inverse of ``as_json``."""
        return cls(stored["by_word"], stored["frequencies"])


def similar_words(words: Sequence[str], vectors_WD: NDArray[np.float32]) -> dict[str, list[str]]:
    """For each word that has some, the words before it with similar embeddings, in their order.

    Args:
        words: the words, the most frequent first.
        vectors_WD: their embeddings.
    """
    centred_WD = vectors_WD - vectors_WD.mean(0)
    centred_WD /= np.linalg.norm(centred_WD, axis=1, keepdims=True) + 1e-12
    similar: dict[str, list[str]] = {}
    for number, word in enumerate(words):
        found = np.flatnonzero(centred_WD[:number] @ centred_WD[number] > SIMILARITY)
        if len(found):
            similar[word] = [words[int(index)] for index in found]
    return similar


def merge(similar: Mapping[str, Sequence[str]], are_synonyms: Callable[[str, str], bool]) -> dict[str, str]:
    """For each word with a synonym among its similar words, the first one; a word that is itself replaced is none."""
    merged: dict[str, str] = {}
    for word, others in similar.items():
        synonym = next((other for other in others if other not in merged and are_synonyms(word, other)), None)
        if synonym is not None:
            merged[word] = synonym
    return merged


@dataclass
class Substitutions:
    """How often similar words are said in the same captions, and in other captions of the same images.

    Captions at the high ratio are left out, since they also say what is not in the image. Keys are a word and a similar
    one; numbers are sums over the captions that contain the word.
    """

    captions: int = 0
    containing: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Number of captions that contain the word."""
    beside: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """1 if the caption has a sentence with the similar word but without the word."""
    instead: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """Share of the image's other captions that contain the similar word."""

    @classmethod
    def count(cls, images: Iterable[Iterable[Sentence]], similar: Mapping[str, Sequence[str]]) -> Substitutions:
        """Count in the sentences of each image; ``similar`` maps words to similar ones."""
        counted = cls()
        involved = {*similar, *(other for others in similar.values() for other in others)}
        for sentences in images if similar else ():
            captions: dict[str, list[set[str]]] = defaultdict(list)
            for sentence in sentences:
                if sentence.role != HIGH:
                    captions[sentence.role].append(involved.intersection(sentence.word_logps))
            counted._add(list(captions.values()), similar)
        return counted

    def _add(self, captions: Sequence[Sequence[set[str]]], similar: Mapping[str, Sequence[str]]) -> None:
        """Add the captions of an image, each the words of its sentences."""
        said = [set[str]().union(*caption) for caption in captions]
        self.captions += len(said)
        for number, (caption, words) in enumerate(zip(captions, said, strict=True)):
            others = said[:number] + said[number + 1 :]
            for word in words:
                self.containing[word] += 1
                for other in similar.get(word, ()):
                    pair = word, other
                    self.beside[pair] += any(other in sentence and word not in sentence for sentence in caption)
                    self.instead[pair] += sum(other in each for each in others) / max(1, len(others))

    def are_synonyms(self, word: str, other: str) -> bool:
        """Whether ``other`` is said of the images of which ``word`` is said, but not beside it."""
        if not self.containing.get(word):
            return False
        pair = word, other
        beside, instead = (counts.get(pair, 0.0) / self.containing[word] for counts in (self.beside, self.instead))
        anywhere = self.containing.get(other, 0) / self.captions
        return instead > IN_PLACE * max(beside, anywhere)
