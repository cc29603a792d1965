"""An image with damaged or oversized metadata still loads; only damaged pixels make it an error."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from jsfree.config import Source
from jsfree.errors import RowError
from jsfree.images.decoding import check_image
from jsfree.images.metadata import without_metadata
from tests.support.example_files import load, png_chunk

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
MEBIBYTES_3 = zlib.compress(bytes(3 * 2**20))
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(kind="PNG", image=None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def inserted(content: bytes, chunk: bytes, before: bytes = b"IDAT") -> bytes:
    """Inserts a chunk into a PNG before the chunk named ``before``."""
    position = content.index(before) - 4
    return content[:position] + chunk + content[position:]


def wrong_checksum(kind: bytes, data: bytes) -> bytes:
    chunk = png_chunk(kind, data)
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"iCCP", b"profile\0\0" + MEBIBYTES_3),
        png_chunk(b"iCCP", b"profile\0\0no deflate stream"),
        png_chunk(b"iCCP", b"a name without its end"),
        png_chunk(b"zTXt", b"comment\0\0" + MEBIBYTES_3),
        png_chunk(b"zTXt", b"comment\0\7" + zlib.compress(b"of an unknown method")),
        png_chunk(b"iTXt", b"comment\0\1\0\0\0" + MEBIBYTES_3),
        png_chunk(b"tEXt", b"comment\0" + b"words " * 2**20),
        wrong_checksum(b"tEXt", b"comment\0words"),
        wrong_checksum(b"tIME", bytes(7)),
        png_chunk(b"pHYs", b"\0"),
        png_chunk(b"gAMA", b""),
        png_chunk(b"cHRM", b"short"),
        png_chunk(b"sRGB", b""),
        png_chunk(b"acTL", b"\0"),
    ],
    ids=range(14),
)
def test_a_png_with_invalid_ancillary_chunks_keeps_its_pixels(chunk, before):
    content = inserted(encoded(), chunk, before)
    assert np.array_equal(load(content), PIXELS)
    assert check_image(content, "some image", Source()).format == "PNG"


def test_damaged_exif_does_not_rotate_a_png():
    assert np.array_equal(load(inserted(encoded(), wrong_checksum(b"eXIf", turned().tobytes()))), PIXELS)


def test_a_png_with_a_damaged_chunk_keeps_orientation_and_transparency():
    damaged = png_chunk(b"iCCP", b"profile\0\0no deflate stream")
    assert load(inserted(encoded(exif=turned()), damaged)).size == (48, 64)
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta tiff:Orientation="6"/>'
    assert load(inserted(inserted(encoded(), png_chunk(b"iTXt", xmp)), damaged)).size == (48, 64)
    clear = encoded(image=Image.new("P", (16, 12), 0), transparency=0)
    assert load(inserted(clear, damaged)).getpixel((3, 3)) == (255, 255, 255)


def test_a_png_truncated_after_its_pixels_loads():
    content = inserted(encoded(), png_chunk(b"tEXt", b"comment\0" + bytes(100)), b"IEND")
    assert np.array_equal(load(content[:-60]), PIXELS)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_a_wrong_checksum_in_a_critical_chunk_makes_a_png_undecodable(kind):
    content = encoded(image=Image.fromarray(PIXELS).quantize(16))
    position = content.index(kind)
    length = int.from_bytes(content[position - 4 : position], "big")
    damaged = bytearray(content)
    damaged[position + 4 + length] ^= 255
    with pytest.raises(RowError) as caught:
        load(bytes(damaged))
    assert caught.value.kind == "undecodable"


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


@pytest.mark.parametrize(
    "odd",
    [
        segment(0xE0, b"JFIF\0\1"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(500)),
        segment(0xE2, b"MPF\0II*\0" + b"\xff" * 30),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\x10short"),
        segment(0xED, b"Photoshop 3.0\x00"),
        segment(0xEE, b"Adobe\0"),
        segment(0xFE, b""),
        segment(0xEF, b"\xff" * 1000),
        b"\xff" + segment(0xE0, b"JFIF\0"),
    ],
    ids=range(10),
)
def test_a_jpeg_with_invalid_segments_keeps_its_pixels_and_orientation(odd):
    content = encoded("JPEG", exif=turned())
    assert np.array_equal(load(content[:2] + odd + content[2:]), load(content))


def test_a_jpeg_keeps_the_adobe_colour_transform():
    """Without the Adobe segment, four components are decoded as plain CMYK, which inverts the colours."""
    content = encoded("JPEG", image=Image.new("CMYK", (32, 32), (0, 40, 200, 10)))
    assert np.array_equal(load(content[:2] + segment(0xE0, b"JFIF\0\1") + content[2:]), load(content))


def riff(content: bytes) -> dict[bytes, int]:
    """Maps each chunk of a WEBP file to its position."""
    found, position = {}, 12
    while position < len(content):
        found[content[position : position + 4]] = position
        length = int.from_bytes(content[position + 4 : position + 8], "little")
        position += 8 + length + length % 2
    return found


def webp(**options) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return encoded("WEBP", lossless=True, exif=turned(), icc_profile=profile, xmp=b"<x/>" * 20, **options)


@pytest.mark.parametrize("size", [b"\xff\xff\0\0", b"\xff\xff\xff\x7f", b"\3\0\0\0"])
@pytest.mark.parametrize("chunk", [b"ICCP", b"EXIF", b"XMP "])
def test_a_webp_with_a_wrong_chunk_length_keeps_its_pixels(chunk, size):
    content = bytearray(webp())
    position = riff(bytes(content))[chunk]
    content[position + 4 : position + 8] = size
    loaded = load(bytes(content))
    upright = loaded if loaded.size == (64, 48) else loaded.rotate(90, expand=True)
    assert np.array_equal(upright, PIXELS)
    assert loaded.size == (48, 64) or chunk == b"EXIF"


def test_a_webp_loads_when_truncated_in_its_metadata_but_not_in_its_pixels():
    content = webp()
    assert load(content[:-10]).size == (48, 64)  # the EXIF chunk before the cut is applied
    assert load(content[: riff(content)[b"EXIF"] + 20]).size == (64, 48)
    flags = content[:20] + b"\xff" + content[21:]
    assert np.array_equal(load(flags).rotate(90, expand=True), PIXELS)
    with pytest.raises(RowError, match="damaged"):
        load(content[: riff(content)[b"EXIF"] - 200])


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_with_damaged_text_tags_keeps_its_pixels(compression, big):
    content = encoded("TIFF", compression=compression, description="words " * 9, software="x" * 40, big_tiff=big)
    rng = random.Random(0)
    big = content[2] == 43  # libtiff does not write BigTIFF for a file this small
    order, entry = ("<Q", 20) if big else ("<I", 12)
    (directory,) = struct.unpack_from(order, content, 8 if big else 4)
    for start in range(directory + (8 if big else 2), directory + content[directory] * entry, entry):
        if struct.unpack_from("<H", content, start)[0] not in (270, 305):
            continue
        for _ in range(60):
            damaged = bytearray(content)
            damaged[rng.randrange(start + 2, start + entry)] = rng.choice([0, 255, rng.randrange(256)])
            assert np.array_equal(load(bytes(damaged)), PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_removing_metadata_does_not_change_a_valid_image(kind):
    options = {} if kind in ("GIF", "BMP") else {"exif": turned()}
    content = encoded(kind, **options)
    assert np.array_equal(load(without_metadata(content)), load(content))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_removing_metadata_accepts_any_bytes(kind):
    """Damaged and truncated files are accepted, and the result exceeds them by an end marker at most."""
    rng = random.Random(kind)
    content = webp() if kind == "WEBP" else encoded(kind, exif=turned())
    for _ in range(300):
        damaged = bytearray(content[: rng.randrange(len(content))] if rng.random() < 0.5 else content)
        for _ in range(rng.randint(0, 8)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        assert len(without_metadata(bytes(damaged))) <= len(damaged) + 16
