"""Data URLs (RFC 2397) as clients write them: read by their grammar, decoded within a limit.

Accepted beyond the RFC, as browsers do: any case of scheme and type, blanks around the URL, line breaks and blanks in
base64, base64 without its padding or in the alphabet of URLs, and base64 that is percent-encoded.
"""

from __future__ import annotations

import binascii
import string
from dataclasses import dataclass
from urllib.parse import unquote, unquote_to_bytes

MAX_HEADER = 1000
"""Characters before the comma: type and parameters."""
_CHUNK = 2**16
_BLANKS = string.whitespace.encode()
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


class TooLongError(ValueError):
    """The content has more bytes than allowed."""


@dataclass(frozen=True)
class DataUrl:
    """A data URL whose content is not decoded yet; ``media_type`` is in lower case, empty if none is given."""

    media_type: str
    is_base64: bool
    payload: str

    def content(self, max_bytes: int) -> bytes:
        """Decode the payload, after its length was checked.

        Raises:
            TooLongError: it has more than ``max_bytes``.
            ValueError: it is no base64, or not in ASCII.
        """
        encoded = self.payload.encode("ascii")
        if not self.is_base64:
            _check(len(encoded) - 2 * encoded.count(b"%"), max_bytes)
            return _percent_decoded(encoded)
        digits = _percent_decoded(encoded).translate(_STANDARD_ALPHABET, _BLANKS).rstrip(b"=")
        _check(len(digits) * 3 // 4, max_bytes)
        return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4), strict_mode=True)


def parse(url: str) -> DataUrl | None:
    """The parts of a data URL; None for any other text."""
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
    """The text with its escapes decoded, a part at a time: urllib makes an object of each escape."""
    if b"%" not in encoded:
        return encoded
    decoded, position = bytearray(), 0
    while position < len(encoded):
        end = position + _CHUNK
        escape = encoded.rfind(b"%", end - 2, end)
        if escape >= 0 and end < len(encoded):  # it would be divided
            end = escape
        decoded += unquote_to_bytes(encoded[position:end])
        position = end
    return bytes(decoded)
