"""Which files are images, by their names, and where a name does not say, by their first bytes."""

from __future__ import annotations

import mimetypes
import posixpath
from typing import Literal

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff")
OTHER_FORMATS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    ".jxl": "JPEG XL",
    ".jp2": "JPEG 2000",
}
"""Formats of photographs that are not read, by extension."""
PREFIX = 16
"""Bytes at the beginning of a file that tell its format."""

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
}
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
_KNOWN = mimetypes.MimeTypes()  # Python's own table: the same on every machine


def by_name(name: str) -> Literal["image", "other", "unknown"]:
    """What the extension of a file's name says; ``unknown`` if there is none that is commonly known."""
    extension = posixpath.splitext(name)[1].lower()
    if extension in EXTENSIONS:
        return "image"
    if extension in OTHER_FORMATS or _KNOWN.guess_type(f"x{extension}")[0] or extension in _KNOWN.encodings_map:
        return "other"
    return "unknown"


def by_content(prefix: bytes) -> str | None:
    """The image format that a file's first ``PREFIX`` bytes announce; None if it is none that is known here."""
    if prefix[4:8] == b"ftyp":
        return _BRANDS.get(prefix[8:12])
    if prefix[:4] == b"RIFF" and prefix[8:12] == b"WEBP":
        return "WEBP"
    # A text can begin with BM too: two fields of a bitmap's header are always zero.
    if prefix[:2] == b"BM" and prefix[6:10] == bytes(4):
        return "BMP"
    return next((name for magic, name in _MAGIC.items() if prefix.startswith(magic)), None)


def is_read(prefix: bytes) -> bool:
    """Whether a file that begins so is an image of a format that is read."""
    return by_content(prefix) in FORMATS
