"""Removes metadata from encoded images whose pixels are valid but whose metadata Pillow rejects.

Pillow rejects files with a text chunk over 1 MiB, a wrong checksum in a comment, or a segment that is too short, and
its limits are global to the process. Data that affect the pixels or the orientation are kept.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_XMP = b"XML:com.adobe.xmp\0\0"  # keyword of XMP, which may contain the orientation; not compressed
_WEBP_IMAGE = re.compile(rb"VP8[ LX]|ALPH|ANIM|ANMF")
# Tags that libtiff or Pillow needs to decode pixels, and the orientation (274).
_TIFF_TAGS = {256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332}
_TIFF_TAGS |= {338, 339, 347, *range(512, 522), 529, 530, 531, 532}


def without_metadata(content: bytes) -> bytes:
    """Remove the metadata that do not affect the pixels of an encoded image.

    PNG: keeps of the ancillary chunks only transparency, EXIF and XMP with valid checksums. JPEG: removes comments and
    application segments except EXIF, XMP and Adobe's color transform. WEBP: keeps images, animation and EXIF. TIFF:
    keeps the tags that are needed to decode the first page. Other formats, and files truncated in their pixel data, are
    returned unchanged.
    """
    if content.startswith(_PNG):
        return _joined(_png(content))
    if content.startswith(b"\xff\xd8"):
        return _joined(_jpeg(content))
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp(content)
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(content)
    return content


def _joined(pieces: Iterator[bytes]) -> bytes:
    """Concatenate pieces without a list, because there may be a million."""
    joined = bytearray()
    for piece in pieces:
        joined += piece
    return bytes(joined)


def _png(content: bytes) -> Iterator[bytes]:
    """Yield the signature and the chunks to keep. The first letter of an ancillary chunk is lower case."""
    yield _PNG
    position, pixels = len(_PNG), False
    while position + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        kind, end = content[position + 4 : position + 8], position + 12 + length
        ancillary = bool(kind[0] & 0x20)
        if end > len(content):
            if not (ancillary and pixels):
                yield content[position:]
                return
            break
        wanted = _is_wanted(kind, content[position + 8 : end - 4]) and _has_valid_checksum(content, position, end)
        if wanted or not ancillary:
            yield content[position:end]
        if kind == b"IEND":
            return
        pixels |= kind == b"IDAT"
        position = end
    yield b"\0\0\0\0IEND\xaeB`\x82"


def _is_wanted(kind: bytes, data: bytes) -> bool:
    return kind in (b"tRNS", b"eXIf") or (kind == b"iTXt" and data.startswith(_XMP) and len(data) < 2**20)


def _has_valid_checksum(content: bytes, start: int, end: int) -> bool:
    return zlib.crc32(memoryview(content)[start + 4 : end - 4]) == int.from_bytes(content[end - 4 : end], "big")


def _jpeg(content: bytes) -> Iterator[bytes]:
    """Yield the segments to keep before the first scan, then the rest."""
    yield content[:2]
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        end = position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA or end < position + 4:
            break
        exif_or_xmp, adobe = marker == 0xE1, marker == 0xEE and end - position >= 16
        if exif_or_xmp or adobe or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            yield content[position:end]
        position = end
    yield content[position:]


def _webp(content: bytes) -> bytes:
    """Rebuild the RIFF file with the chunks to keep and a matching header."""
    kinds: set[bytes] = set()
    header, body = b"", bytearray()
    position = 12
    while position + 8 <= len(content):
        kind, length = content[position : position + 4], int.from_bytes(content[position + 4 : position + 8], "little")
        end = position + 8 + length + length % 2
        image = _WEBP_IMAGE.fullmatch(kind) is not None
        if not image and not _is_chunk_at(content, end):  # the length is invalid: continue at the next image
            following = None if kinds & {b"VP8 ", b"VP8L", b"ANMF"} else _WEBP_IMAGE.search(content, position + 4)
            position = following.start() if following else len(content)
            continue
        if kind == b"VP8X":
            header = content[position:end]
        elif image or kind == b"EXIF":
            body += content[position:end]
            kinds.add(kind)
        position = end
    if len(header) >= 18:
        flags = (header[8] & 0x10) | 0x02 * (b"ANIM" in kinds) | 0x08 * (b"EXIF" in kinds)
        body[:0] = header[:8] + bytes([flags, 0, 0, 0]) + header[12:]
    return b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + bytes(body)


def _is_chunk_at(content: bytes, position: int) -> bool:
    """Whether a chunk of a WEBP file starts at ``position``, or the file ends there."""
    following = content[position : position + 4]
    return len(content) - 1 <= position <= len(content) + 1 or (len(following) == 4 and following.isascii())


def _tiff(content: bytes) -> bytes:
    """Shorten the first directory in place; offsets of other data do not change."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    offset_format, count_format, entry_size = (order + "Q", order + "Q", 20) if big else (order + "I", order + "H", 12)
    try:
        (directory,) = struct.unpack_from(offset_format, content, 8 if big else 4)
        (count,) = struct.unpack_from(count_format, content, directory)
    except struct.error:
        return content
    first = directory + struct.calcsize(count_format)
    starts = range(first, first + min(count, 2**16) * entry_size, entry_size)
    entries = (content[start : start + entry_size] for start in starts)
    kept = [entry for entry in entries if struct.unpack(order + "H", entry[:2].ljust(2, b"\0"))[0] in _TIFF_TAGS]
    shortened = struct.pack(count_format, len(kept)) + b"".join(kept) + bytes(struct.calcsize(offset_format))
    return content[:directory] + shortened + content[directory + len(shortened) :]
