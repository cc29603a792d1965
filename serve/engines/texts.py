"""The text of a caption while it is decoded, and the text of single tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from jsfree.decoding.requests import TokenLogp
from jsfree.models.loading import Captioner
from serve.http.protocol import TokenScore, TokenText

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's sign for a blank."""
CACHED_TOKENS = 100_000


class IncrementalText:
    """Text of a caption as far as later tokens cannot change it; all of it is a beginning of ``Caption.text``.

    Held back are characters of which bytes are missing, white space at the end, which a caption loses, and what may be
    the beginning of a stop string.
    """

    def __init__(self, captioner: Captioner, tokens: TokenTexts, stops: Sequence[str]) -> None:
        self._captioner, self._tokens, self._stops = captioner, tokens, stops
        self._sent = ""

    def advance(self, token_ids: Sequence[int]) -> str:
        """New text, given all tokens so far."""
        # A tokenizer with tokens for bytes decodes a run of them together: as characters, or none of them.
        length = next((n for n in range(len(token_ids), 0, -1) if not self._tokens.is_byte(token_ids[n - 1])), 0)
        text = self._captioner.decode(token_ids[:length]).rstrip(REPLACEMENT)
        text = text[: len(text) - longest_stop_prefix(text, self._stops)].strip()
        return self._send(text)

    def finish(self, text: str) -> str:
        """The rest of a finished caption's text."""
        return self._send(text)

    def _send(self, text: str) -> str:
        if not text.startswith(self._sent):
            return ""
        new, self._sent = text[len(self._sent) :], text
        return new


def longest_stop_prefix(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that is a beginning of a stop string."""
    return max(
        (n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])), default=0
    )


class TokenTexts:
    """Bytes and text of single tokens."""

    def __init__(self, captioner: Captioner) -> None:
        self._tokenizer = captioner.processor.tokenizer
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        self._byte_level = backend is not None and "ByteLevel" in repr(backend.decoder)
        self._content = lru_cache(CACHED_TOKENS)(self._spelt)

    def is_byte(self, token_id: int) -> bool:
        """Whether a token is a single byte, of a tokenizer that has such tokens beside those of text."""
        return not self._byte_level and BYTE.fullmatch(self._name(token_id)) is not None

    def text(self, token_id: int) -> TokenText:
        """A token's bytes, and its text, in which bytes that are not UTF-8 are escaped (``\\xe2``)."""
        content = self._content(token_id)
        return TokenText(content.decode("utf-8", "backslashreplace"), content)

    def score(self, drawn: TokenLogp) -> TokenScore:
        """A drawn token and its alternatives with their texts."""
        alternatives = tuple((self.text(token), logp) for token, logp in drawn.alternatives)
        return TokenScore(self.text(drawn.token), drawn.logp, alternatives)

    def _name(self, token_id: int) -> str:
        """A token as the vocabulary spells it; empty for an id without a token."""
        return str(self._tokenizer.convert_ids_to_tokens(token_id) or "")

    def _spelt(self, token_id: int) -> bytes:
        name = self._name(token_id)
        if self._byte_level:
            table = byte_level_table()
            if all(character in table for character in name):
                return bytes(table[character] for character in name)
        byte = BYTE.fullmatch(name)
        return bytes([int(byte[1], 16)]) if byte else name.replace(BLANK, " ").encode("utf-8", "replace")


@lru_cache(1)
def byte_level_table() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2).

    Printable characters of Latin-1 stand for themselves; the other bytes, in their order, are the characters from 256.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}
