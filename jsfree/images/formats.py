"""Detects image files by their extension or by their first bytes."""

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
"""Image formats that are not supported, by extension."""
PREFIX = 16
"""Number of bytes at the start of a file that are needed to detect its format."""

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
_MIME_TYPES = mimetypes.MimeTypes()  # Python's own table, which is the same on every machine


def kind_by_name(name: str) -> Literal["image", "other", "unknown"]:
    """Classify a file by its extension; ``unknown`` if it has none or an uncommon one."""
    extension = posixpath.splitext(name)[1].lower()
    if extension in EXTENSIONS:
        return "image"
    is_common = _MIME_TYPES.guess_type(f"x{extension}")[0] or extension in _MIME_TYPES.encodings_map
    return "other" if is_common or extension in OTHER_FORMATS else "unknown"


def format_by_content(prefix: bytes) -> str | None:
    """Detect an image format from the first ``PREFIX`` bytes of a file; None if it is not recognized."""
    if prefix[4:8] == b"ftyp":
        return _BRANDS.get(prefix[8:12])
    if prefix[:4] == b"RIFF" and prefix[8:12] == b"WEBP":
        return "WEBP"
    # Text can start with "BM" too, but these two fields of a bitmap header are always zero.
    if prefix[:2] == b"BM" and prefix[6:10] == bytes(4):
        return "BMP"
    return next((name for magic, name in _MAGIC.items() if prefix.startswith(magic)), None)


def is_supported(prefix: bytes) -> bool:
    """Whether a file with these first bytes is an image in a supported format."""
    return format_by_content(prefix) in FORMATS
