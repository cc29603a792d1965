"""Parsing and size-limited decoding of data URLs (RFC 2397).

Like browsers, accepts more than the RFC: any case of scheme and type, whitespace around the URL and in base64, base64
without padding, in the URL-safe alphabet, or percent-encoded.
"""

from __future__ import annotations

import binascii
import string
from dataclasses import dataclass
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

MAX_HEADER = 1000
"""Maximum length of the part before the comma, in characters."""
_CHUNK = 2**16
_HEX_DIGITS = np.array([int(chr(code), 16) if chr(code) in string.hexdigits else 255 for code in range(256)], np.uint8)
"""Value of each byte as a hexadecimal digit; 255 for other bytes."""
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
    """Decode percent escapes; other percent signs stay.

    In chunks, and without a Python object for each escape: there may be millions, and creating them would delay the
    other threads of the process.
    """
    if b"%" not in encoded:
        return encoded
    decoded, position = bytearray(), 0
    while position < len(encoded):
        end = position + _CHUNK
        escape = encoded.rfind(b"%", end - 2, end)
        if escape >= 0 and end < len(encoded):  # do not split an escape
            end = escape
        decoded += _unescaped(np.frombuffer(encoded[position:end], np.uint8))
        position = end
    return bytes(decoded)


def _unescaped(encoded_N: NDArray[np.uint8]) -> bytes:
    """Decode the escapes of one chunk of N bytes. They cannot overlap, because a percent sign is no digit."""
    digits_N = _HEX_DIGITS[encoded_N]
    starts = np.flatnonzero((encoded_N[:-2] == ord("%")) & (digits_N[1:-1] < 16) & (digits_N[2:] < 16))
    decoded_N, is_kept_N = encoded_N.copy(), np.ones(len(encoded_N), bool)
    decoded_N[starts] = 16 * digits_N[starts + 1] + digits_N[starts + 2]
    is_kept_N[starts + 1] = is_kept_N[starts + 2] = False
    decoded: bytes = decoded_N[is_kept_N].tobytes()
    return decoded
