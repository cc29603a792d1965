"""Parsing and size-limited decoding of data URLs (RFC 2397).

Like browsers, accepts more than the RFC: any case of scheme and type, whitespace around the URL and in base64, base64
without padding, in the URL-safe alphabet, or percent-encoded.
"""

from __future__ import annotations

import binascii
import re
import string
from dataclasses import dataclass
from urllib.parse import unquote

MAX_HEADER = 1000
"""Maximum length of the part before the comma, in characters."""
_CHUNK = 2**16
_ESCAPES = re.compile(rb"(?:%[0-9A-Fa-f]{2})+")
_BLANKS = string.whitespace.encode()
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


class TooLongError(ValueError):
    """The content is larger than the limit."""


@dataclass(frozen=True)
class DataUrl:
    """A data URL with its content still encoded; ``media_type`` is in lower case, empty if the URL has none."""

    media_type: str
    is_base64: bool
    payload: str

    def content(self, max_bytes: int) -> bytes:
        """Decode the payload; its length is checked first.

        Raises:
            TooLongError: the content has more than ``max_bytes`` bytes.
            ValueError: the payload is not valid base64, or not ASCII.
        """
        encoded = self.payload.encode("ascii")
        if not self.is_base64:
            _check(len(encoded) - 2 * encoded.count(b"%"), max_bytes)
            return _percent_decoded(encoded)
        digits = _percent_decoded(encoded).translate(_STANDARD_ALPHABET, _BLANKS).rstrip(b"=")
        _check(len(digits) * 3 // 4, max_bytes)
        return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4), strict_mode=True)


def parse(url: str) -> DataUrl | None:
    """Split a data URL; None if ``url`` is not one."""
    url = url.strip()
    comma = url.find(",", 0, MAX_HEADER)
    scheme, colon, header = url[: max(comma, 0)].partition(":")
    if not colon or scheme.lower() != "data":
        return None
    media_type, *parameters = (unquote(part).strip().lower() for part in header.split(";"))
    return DataUrl(media_type, "base64" in parameters, url[comma + 1 :])


def _check(length: int, max_bytes: int) -> None:
    if length > max_bytes:
        raise TooLongError(f"{length} bytes, the limit is {max_bytes}")


def _percent_decoded(encoded: bytes) -> bytes:
    """Decode percent escapes, in chunks: each run of escapes takes a few objects. Other percent signs stay."""
    if b"%" not in encoded:
        return encoded
    decoded, position = bytearray(), 0
    while position < len(encoded):
        end = position + _CHUNK
        escape = encoded.rfind(b"%", end - 2, end)
        if escape >= 0 and end < len(encoded):  # do not split an escape
            end = escape
        decoded += _ESCAPES.sub(_unescaped, encoded[position:end])
        position = end
    return bytes(decoded)


def _unescaped(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match[0].replace(b"%", b"").decode("ascii"))
