"""Sentences of candidates, as the stages that verify and compose captions receive them."""

from jsfree.stages.candidate_sentences import Sentence


def said(
    *words: str,
    cosine: float = 0.0,
    logp: float = -1.0,
    role: str = "low",
    without_image: dict[str, float] | None = None,
) -> Sentence:
    """A sentence of one token a word, all of the same log-probability.

    Args:
        words: its words.
        cosine: its cosine with the image.
        logp: log-probability of each token.
        role: the candidate that it is from.
        without_image: log-probabilities of words without the image, where they are known.
    """
    tokens = tuple(sum(map(ord, word)) for word in words)
    logps = dict.fromkeys(words, logp)
    unconditional = {word: value for word, value in (without_image or {}).items() if word in words}
    return Sentence(" ".join(words) + ".", tokens, cosine, (logp,) * len(words), role, logps, unconditional)
