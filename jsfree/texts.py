"""Text that tables, files and tokenizers cannot hold, although JSON and file names allow it."""

from __future__ import annotations

from jsfree.errors import RowError

MAX_SHOWN = 400
"""Characters of a message that quotes a record."""


def is_text(text: str, *, escaped_bytes: bool = False) -> bool:
    """Whether a text is valid Unicode: it holds neither bytes that are not UTF-8, nor half of a surrogate pair.

    Args:
        escaped_bytes: allow bytes that are not UTF-8, as Python holds them in paths (``surrogateescape``).
    """
    if text.isascii():
        return True
    try:
        text.encode("utf-8", "surrogateescape" if escaped_bytes else "strict")
    except UnicodeEncodeError:
        return False
    return True


def require_text(text: str, what: str) -> str:
    """The text itself; ``what`` is its name in messages, such as ``key 'chosen'``.

    Raises:
        RowError: it holds half of a surrogate pair, bytes that are not UTF-8, or a zero character (``malformed``).
    """
    if not is_text(text):
        at, character = next((at, each) for at, each in enumerate(text) if "\ud800" <= each <= "\udfff")
        raise RowError(
            "malformed",
            f"{what} holds U+{ord(character):04X} at character {at}, which is half of a surrogate pair or a byte that"
            " is not UTF-8",
            "correct or remove the row",
        )
    if "\0" in text:
        raise RowError(
            "malformed", f"{what} holds a zero character at {text.index(chr(0))}", "correct or remove the row"
        )
    return text


def readable(text: str) -> str:
    """A text that tables can hold: bytes that are not UTF-8 are written ``\\xe9``, halves of pairs ``\\ud83d``."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """A text that can be written anywhere: ``readable``, without zero characters, and cut to ``MAX_SHOWN``."""
    shown = readable(text).replace("\0", "\\0")
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
