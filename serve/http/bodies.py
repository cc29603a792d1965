"""Checks and parses a request's JSON body.

``check_structure`` counts before anything is built: a list of a million empty objects takes 3 MB as text and 100 times
as much as Python objects. Its cost is that of a few searches for a character: it reads the text from one string to the
next, and stops at the first limit that is exceeded.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from jsfree.texts import is_text
from serve.http.errors import ApiError, invalid

MAX_DEPTH = 32
"""Maximum number of arrays and objects inside each other."""
MAX_ENTRIES = 512
"""Maximum number of entries of one array or object."""
MAX_VALUES = 5000
"""Maximum number of values in a body: Python needs about 100 bytes for a value of two bytes in JSON."""
MAX_OUTSIDE = 65_536
"""Maximum number of characters outside strings: punctuation, numbers and indentation."""
MAX_LONG_STRINGS = 1
"""Maximum number of strings that are longer than a prompt can be: the image."""
ESCAPED = 6
"""Maximum length of a character in JSON: ``\\u00e9``."""
MIN_ESCAPE_DISTANCE = 16
"""Minimum average number of characters between two backslashes in an image: PHP escapes each slash of base64, and
folded base64 has a line break every 76 characters."""
LARGE = 1_000_000
"""Bodies above this number of characters are parsed one at a time: parsing takes several copies of them."""
MAX_PATH = 100
"""Maximum length of a path in an error message, in characters."""

_MARKS = re.compile(r"[\[\]{},]")
_STRING_END = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_parsing_large = threading.Lock()


def json_object(body: bytes, max_text: int) -> dict[str, Any]:
    """Parse a body; keys whose value is null are dropped at every level, because OpenAI's schema treats them as absent.

    Blocks while other large bodies are parsed: call it in a thread.

    Args:
        max_text: maximum length of a text in the body, in characters.

    Raises:
        ApiError: the body is not a JSON object in UTF-8, UTF-16 or UTF-32, exceeds a limit of its structure, or
            contains a lone surrogate.
    """
    with large_content(len(body)):
        try:
            text = body.decode(json.detect_encoding(body))
            check_structure(text, ESCAPED * max_text)
            fields = json.loads(text)
        except UnicodeDecodeError:
            raise _not_json("the body is not valid UTF-8; encode it as UTF-8") from None
        except (ValueError, RecursionError):
            raise _not_json("the body is not valid JSON") from None
        if isinstance(fields, dict):
            return dict(_given(fields, ""))
    raise _not_json("the body must be a JSON object")


def large_content(length: int) -> AbstractContextManager[Any]:
    """A context in which content of ``length`` bytes may be parsed or decoded; it waits if the content is large."""
    return _parsing_large if length > LARGE else nullcontext()


def check_structure(text: str, max_string: int) -> None:
    """Check the structure of a JSON text in a time proportional to its length, and without building anything.

    It does not check that the text is valid JSON.

    Args:
        max_string: maximum length of a string as it is written; ``MAX_LONG_STRINGS`` may be longer.

    Raises:
        ApiError: there are more values, levels, entries, escapes or long strings than the limits above allow.
    """
    if text.count("\\") > len(text) // MIN_ESCAPE_DISTANCE + max_string:
        raise _not_json("the body has too many escapes (\\); encode it as UTF-8")
    entries: list[int] = []
    position = outside = values = strings = long_strings = 0
    while True:
        quote = text.find('"', position)
        end = len(text) if quote < 0 else quote
        outside += end - position
        if outside > MAX_OUTSIDE:
            raise _not_json(f"the body has more than {MAX_OUTSIDE} characters outside strings; remove white space")
        for mark in _MARKS.finditer(text, position, end):
            _count_entry(mark[0], entries)
            values += mark[0] not in "]}"
            _require_few(values, MAX_VALUES)
        if quote < 0:
            return
        position = _after_string(text, quote + 1)
        strings += 1
        _require_few(strings, 2 * MAX_VALUES)  # each value may have a key
        long_strings += position - quote - 2 > max_string
        if long_strings > MAX_LONG_STRINGS:
            message = f"the body has more than one string of more than {max_string} characters"
            raise invalid(f"{message}; send one image, and shorter texts", code="string_too_long")


def _count_entry(mark: str, entries: list[int]) -> None:
    """Update the number of entries in each open array and object for the next mark of punctuation."""
    if mark in "[{":
        entries.append(0)
        if len(entries) > MAX_DEPTH:
            raise _not_json(f"the body has more than {MAX_DEPTH} levels; send a flatter object")
    elif mark == ",":
        if entries:
            entries[-1] += 1
            if entries[-1] >= MAX_ENTRIES:
                raise _not_json(f"an array or object in the body has more than {MAX_ENTRIES} entries")
    elif entries:
        entries.pop()


def _require_few(count: int, limit: int) -> None:
    if count > limit:
        raise _not_json(f"the body has more than {MAX_VALUES} values; send one image and a text")


def _after_string(text: str, start: int) -> int:
    """The position after a string whose first character is at ``start``."""
    quote = text.find('"', start)
    if text.find("\\", start, quote if quote >= 0 else len(text)) < 0:
        end = quote + 1
    else:
        match = _STRING_END.match(text, start)
        end = match.end() if match else 0
    if end <= 0:
        raise _not_json("the body is not valid JSON")
    return end


def _not_json(message: str) -> ApiError:
    return invalid(message, code="invalid_json")


def _given(fields: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """The keys whose value is not null, with their values."""
    for key, value in fields.items():
        if value is not None:
            yield _encodable(key, path), _cleaned(value, _below(path, key))


def _cleaned(value: Any, path: str) -> Any:
    """A value without null entries in its objects; refuses text that cannot be encoded."""
    if isinstance(value, dict):
        return dict(_given(value, path))
    if isinstance(value, list):
        return [_cleaned(entry, _below(path, str(index))) for index, entry in enumerate(value)]
    return _encodable(value, path) if isinstance(value, str) else value


def _below(path: str, key: str) -> str:
    return (f"{path}.{key}" if path else key)[:MAX_PATH]


def _encodable(text: str, path: str) -> str:
    """Return ``text`` if it can be encoded; JSON escapes can spell a lone surrogate, which is not a character."""
    if is_text(text):
        return text
    where = repr(path) if path else "a key"
    message = f"{where} contains a lone surrogate (\\ud800 to \\udfff); do not cut text inside a character"
    raise invalid(message, path or None, "invalid_unicode")
