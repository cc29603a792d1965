"""Image files that Pillow cannot write."""

import struct
import zlib

from PIL import Image

from jsfree.config import Source
from jsfree.images.decoding import load_image


def load(content: bytes) -> Image.Image:
    """The pixels of an encoded image."""
    return load_image({"id": "some image", "uri": None, "bytes": content, "sha256": None}, Source())[0]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(tags: dict[int, int], data: bytes) -> bytes:
    """A little-endian TIFF with numbers as tags; ``data`` begins at byte 8."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
