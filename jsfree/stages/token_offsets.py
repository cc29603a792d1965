"""Positions of a caption's tokens in its text, by which log-probabilities are assigned to sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from jsfree.models.loading import Captioner


class TokenOffsets:
    """Computes where each token ends in the decoded text. Thread-safe."""

    def __init__(self, captioner: Captioner) -> None:
        self._captioner = captioner
        self._added: dict[tuple[int, int], int] = {}

    def ends(self, token_ids: Sequence[int], text: str) -> list[int]:
        """End of each token in ``text``, in characters; special tokens end where the token before them ends.

        Args:
            token_ids: the caption's tokens.
            text: their decoded text without surrounding white space, or the beginning of it.
        """
        if not token_ids:
            return []
        decoded = self._captioner.decode(token_ids)
        first = len(self._captioner.decode(token_ids[:1]))
        ends = list(accumulate((self._characters(*pair) for pair in pairwise(token_ids)), initial=first))
        if ends[-1] != len(decoded):  # a character of several tokens, or a token whose text depends on more context
            ends = [len(self._captioner.decode(token_ids[: count + 1])) for count in range(len(token_ids))]
        lead = len(decoded) - len(decoded.lstrip())
        return [min(max(end - lead, 0), len(text)) for end in ends]

    def _characters(self, previous: int, token: int) -> int:
        """Characters that ``token`` adds to the text after ``previous``."""
        pair = previous, token
        if pair not in self._added:
            decode = self._captioner.decode
            self._added[pair] = len(decode(pair)) - len(decode(pair[:1]))
        return self._added[pair]
