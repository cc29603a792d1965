"""Parsing of a request's JSON body: limits its size, drops nulls, refuses text that cannot be encoded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jsfree.texts import is_text
from serve.http.errors import invalid

MAX_VALUES = 2000
"""Maximum number of values in a body: Python needs about 100 bytes for a value of two bytes in JSON."""
MAX_PATH = 100
"""Maximum length of a path in an error message, in characters."""


def json_object(body: bytes, max_text: int) -> dict[str, Any]:
    """Parse a body; keys whose value is null are dropped at every level, because OpenAI's schema treats them as absent.

    Args:
        max_text: maximum length of the body's texts, in which commas and brackets are counted like values.

    Raises:
        ApiError: the body is not a JSON object in UTF-8, UTF-16 or UTF-32, has too many values, or contains a lone
            surrogate.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES + max_text:
        raise invalid(
            f"the body has more than {MAX_VALUES} values; send one message with one image and a text",
            code="invalid_json",
        )
    try:
        fields = json.loads(body.decode(json.detect_encoding(body)))
        if isinstance(fields, dict):
            return dict(_given(fields, ""))
    except UnicodeDecodeError:
        raise invalid("the body is not valid UTF-8; encode it as UTF-8", code="invalid_json") from None
    except (ValueError, RecursionError):
        raise invalid("the body is not valid JSON", code="invalid_json") from None
    raise invalid("the body must be a JSON object", code="invalid_json")


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
