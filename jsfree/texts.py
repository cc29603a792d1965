"""Validation and escaping of text from JSON and file names that tables, files and tokenizers cannot represent."""

from __future__ import annotations

from jsfree.errors import RowError

MAX_SHOWN = 400
"""Maximum length of a quoted text in messages, in characters."""


def is_text(text: str, *, escaped_bytes: bool = False) -> bool:
    """Whether a string is valid Unicode, without bytes that are not UTF-8 and without lone surrogates.

    Args:
        escaped_bytes: allow bytes that are not UTF-8, as Python represents them in paths (``surrogateescape``).
    """
    if text.isascii():
        return True
    try:
        text.encode("utf-8", "surrogateescape" if escaped_bytes else "strict")
    except UnicodeEncodeError:
        return False
    return True


def require_text(text: str, what: str) -> str:
    """Return ``text`` if it is valid.

    Args:
        what: name of the text in error messages, such as ``key 'chosen'``.

    Raises:
        RowError: the text contains a lone surrogate, bytes that are not UTF-8, or a null character (``malformed``).
    """
    if not is_text(text):
        position, character = next((index, char) for index, char in enumerate(text) if "\ud800" <= char <= "\udfff")
        raise RowError(
            "malformed",
            f"{what} contains U+{ord(character):04X} at character {position}, a lone surrogate or a byte that is not"
            " UTF-8",
            "correct or remove the row",
        )
    if "\0" in text:
        raise RowError(
            "malformed", f"{what} contains a null character at {text.index(chr(0))}", "correct or remove the row"
        )
    return text


def readable(text: str) -> str:
    """Escape bytes that are not UTF-8 as ``\\xe9`` and lone surrogates as ``\\ud83d``."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """Escape a text with ``readable``, escape null characters, and truncate it to ``MAX_SHOWN`` characters."""
    shown = readable(text).replace("\0", "\\0")
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
