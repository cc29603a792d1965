"""Splits the candidates of an image into sentences with their tokens, cosines and log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jsfree.schemas import Role, ScoredCandidate
from jsfree.stages.sentences import sentences, word_spans


@dataclass(frozen=True, eq=False)
class Sentence:
    """A sentence of a candidate.

    ``token_ids`` include the tokens before it that belong to no sentence, such as a list marker, so that the sentences
    of a caption together are its tokens without the end token.
    """

    text: str
    token_ids: tuple[int, ...]
    cosine: float
    """CLIP cosine with the image; of a sentence that exceeds CLIP's context, the lowest of its parts."""
    logps: tuple[float, ...]
    """Log-probability of each token given the image and the tokens before it, in nats."""
    role: Role
    """The candidate that it is from."""
    word_logps: Mapping[str, float]
    """Log-probability of each word, that of its tokens together; of a word that occurs twice, the higher one."""
    unconditional_word_logps: Mapping[str, float] = field(default_factory=dict)
    """The same without the image; empty if it is not known."""

    @property
    def probability(self) -> float:
        """Geometric mean of the probabilities of its tokens, which does not depend on its length."""
        return math.exp(self.mean_logp)

    @property
    def mean_logp(self) -> float:
        """Log-probability per token, in nats."""
        return sum(self.logps) / len(self.logps)


def split_candidate(candidate: ScoredCandidate) -> list[Sentence]:
    """The sentences of a candidate, in order; those without a word or a cosine of their own are left out."""
    text, parts = candidate["text"], iter(candidate["sentences"])
    part = next(parts, None)
    result: list[Sentence] = []
    count = len(candidate["ends"]) - len(ending(candidate))
    first = start = 0
    for sentence in sentences(text):
        found = text.find(sentence, start)
        start = end = (found if found >= 0 else start) + len(sentence)
        cosines: list[float] = []
        offset = 0
        while part is not None and (place := sentence.find(part["text"], offset)) >= 0:
            cosines.append(part["score"])
            offset = place + len(part["text"])
            part = next(parts, None)
        last = next((number for number in range(first, count) if candidate["ends"][number] > end), count)
        tokens, logps = candidate["token_ids"][first:last], candidate["logps"][first:last]
        token_ends = [place - (end - len(sentence)) for place in candidate["ends"][first:last]]
        words = word_logps(sentence, token_ends, logps)
        if words and cosines:
            without_image = word_logps(sentence, token_ends, (candidate["unconditional_logps"] or ())[first:last])
            role = candidate["role"]
            result.append(Sentence(sentence, tuple(tokens), min(cosines), tuple(logps), role, words, without_image))
            first = last
    return result


def word_logps(text: str, ends: Sequence[int], logps: Sequence[float]) -> dict[str, float]:
    """Log-probability of each word of a sentence: the sum over the tokens that contain a part of it.

    Args:
        text: the sentence.
        ends: end of each token in ``text``, in characters; not positive for tokens before the sentence.
        logps: log-probability of each token.
    """
    found: dict[str, float] = {}
    for word, start, end in word_spans(text):
        own = [
            logp
            for token_start, token_end, logp in zip([0, *ends], ends, logps, strict=False)
            if token_start < end and token_end > start
        ]
        if own:
            found[word] = max(found.get(word, -math.inf), sum(own))
    return found


def ending(candidate: ScoredCandidate) -> tuple[int, ...]:
    """The tokens that end a caption: its last ones that add nothing to its text; empty if it was truncated."""
    ends = candidate["ends"]
    if candidate["finish"] != "stop" or not ends:
        return ()
    first = next((number for number, end in enumerate(ends) if end == ends[-1]), len(ends)) + 1
    return tuple(candidate["token_ids"][first:])
