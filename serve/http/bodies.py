"""The JSON of a request's body: read within limits, without nulls, and of text that can be written again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jsfree.texts import is_text
from serve.http.errors import invalid

MAX_VALUES = 2000
"""Numbers, texts, lists and objects in a body. Python takes some 100 bytes for a value that JSON writes in two."""
MAX_PATH = 100
"""Characters of a path in an error; keys may be long."""


def json_object(body: bytes, max_text: int) -> dict[str, Any]:
    """Read a body.

    A key whose value is null is left out, at every level: in OpenAI's schema null stands for absent.

    Args:
        max_text: characters that texts may hold beside values: commas and brackets in them look like values.

    Raises:
        ApiError: it is no JSON object in UTF-8 (or UTF-16 or UTF-32), has too many values, or text with half of a
            surrogate pair.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES + max_text:
        raise invalid(
            f"the body has more than {MAX_VALUES} values; send one message, with one image and a text",
            code="invalid_json",
        )
    try:
        fields = json.loads(body.decode(json.detect_encoding(body)))
        if isinstance(fields, dict):
            return dict(_given(fields, ""))
    except UnicodeDecodeError:
        raise invalid("the body is no valid UTF-8; encode it as UTF-8", code="invalid_json") from None
    except (ValueError, RecursionError):
        raise invalid("the body is no valid JSON", code="invalid_json") from None
    raise invalid("the body must be a JSON object", code="invalid_json")


def _given(fields: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """The keys that have a value, and their values."""
    for key, value in fields.items():
        if value is not None:
            yield _encodable(key, path), _cleaned(value, _below(path, key))


def _cleaned(value: Any, path: str) -> Any:
    """A value without the keys of null in it; its texts are checked."""
    if isinstance(value, dict):
        return dict(_given(value, path))
    if isinstance(value, list):
        return [_cleaned(entry, _below(path, str(index))) for index, entry in enumerate(value)]
    return _encodable(value, path) if isinstance(value, str) else value


def _below(path: str, key: str) -> str:
    return (f"{path}.{key}" if path else key)[:MAX_PATH]


def _encodable(text: str, path: str) -> str:
    """The text, if it can be encoded: JSON may escape half of a surrogate pair, which is no character."""
    if is_text(text):
        return text
    where = repr(path) if path else "a key"
    message = f"{where} holds half of a surrogate pair (\\ud800 to \\udfff); cut text between characters"
    raise invalid(message, path or None, "invalid_unicode")
