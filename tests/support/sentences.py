"""Sentences of candidates, as the stages that verify and compose captions receive them."""

from jsfree.stages.candidate_sentences import Sentence


def said(*words: str, cosine: float = 0.0, logp: float = -1.0, role: str = "low") -> Sentence:
    """A sentence of one token a word, all of the same log-probability."""
    tokens = tuple(sum(map(ord, word)) for word in words)
    return Sentence(" ".join(words) + ".", tokens, cosine, (logp,) * len(words), role, dict.fromkeys(words, logp))
