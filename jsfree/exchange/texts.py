"""Texts of records: what JSON allows, but tables, files and tokenizers do not."""

from __future__ import annotations

from jsfree.errors import RowError

MAX_SHOWN = 400
"""Characters of a message that quotes a record."""


def require_text(text: str, what: str) -> str:
    """The text itself; ``what`` is its name in messages, such as ``key 'chosen'``.

    Raises:
        RowError: it holds half of a surrogate pair, bytes that are not UTF-8, or a zero character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "malformed",
            f"{what} holds {_code(text[error.start])} at character {error.start}, which is half of a surrogate"
            " pair or a byte that is not UTF-8; correct or remove the row",
        ) from error
    if "\0" in text:
        raise RowError("malformed", f"{what} holds a zero character at {text.index(chr(0))}; correct or remove the row")
    return text


def printable(text: str) -> str:
    """A text that can be written anywhere: cut, and escaped where it is not valid Unicode."""
    shown = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"
