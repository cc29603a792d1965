"""Decoding takes a bounded number of bytes per pixel in every image mode, and does not change any pixel."""

import io
import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from jsfree.errors import RowError
from jsfree.images import pixels
from tests.support.example_files import load, png_chunk, tiff

SIZE = (2000, 1500)
BANDS = 16e6  # bytes for the bands under conversion and for Python itself
MEASURE = """
import json, os, resource, sys
from PIL import Image
from jsfree.config import Source
from jsfree.images.decoding import load_image

def peak(path):
    content = open(path, "rb").read()
    out, into = os.pipe()
    if not os.fork():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        load_image({"id": path, "uri": None, "bytes": content, "sha256": None}, Source(max_bytes=10**9))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(into, str(grown * 1024).encode())
        os._exit(0)
    os.close(into)
    os.wait()
    return int(os.read(out, 100) or -1)

peak(sys.argv[1])
print(json.dumps({path: peak(path) for path in sys.argv[1:]}))
"""


def deep_png(colour: int, channels: int) -> bytes:
    """A PNG with 16 bits per channel, which Pillow cannot write."""
    width, height = SIZE
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, colour, 0, 0, 0])
    rows = zlib.compress((b"\0" + np.full(width * channels, 5000, ">u2").tobytes()) * height, 1)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def every_mode() -> dict[str, bytes]:
    grey = Image.radial_gradient("L").resize(SIZE)
    levels = np.asarray(grey)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    colour = Image.merge("RGB", (grey, grey, grey))
    palette = grey.convert("P")
    return {
        "1": saved(grey.convert("1"), "PNG"),
        "L": saved(grey, "PNG"),
        "L transparent": saved(grey, "PNG", transparency=3),
        "LA": saved(Image.merge("LA", (grey, grey)), "PNG"),
        "P": saved(palette, "PNG"),
        "P transparent": saved(palette, "PNG", transparency=0),
        "GIF": saved(palette, "GIF", transparency=0),
        "RGB": saved(colour, "PNG"),
        "RGB transparent": saved(colour, "PNG", transparency=(1, 1, 1)),
        "RGB rotated": saved(colour, "JPEG", exif=rotated),
        "RGB progressive": saved(colour, "JPEG", progressive=True, subsampling=0),
        "RGB of 16 bits": deep_png(2, 3),
        "RGBA": saved(Image.merge("RGBA", (grey, grey, grey, grey)), "PNG"),
        "RGBA of 16 bits": deep_png(6, 4),
        "CMYK": saved(Image.merge("CMYK", (grey, grey, grey, grey)), "JPEG"),
        "LAB": saved(Image.merge("LAB", (grey, grey, grey)), "TIFF", compression="tiff_lzw"),
        "I;16": saved(Image.fromarray(levels.astype(np.uint16) * 257), "PNG"),
        "I": saved(Image.fromarray(levels.astype(np.int32)), "TIFF", compression="tiff_lzw"),
        "F": saved(Image.fromarray(levels.astype(np.float32)), "TIFF", compression="tiff_lzw"),
        "WEBP": saved(Image.merge("RGBA", (grey, grey, grey, grey)), "WEBP", method=0),
    }


def test_decoding_any_mode_stays_within_the_documented_bytes_per_pixel(tmp_path):
    paths = {}
    for number, (name, content) in enumerate(every_mode().items()):
        path = tmp_path / f"{number}"
        path.write_bytes(content)
        paths[str(path)] = name
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    peaks = {paths[path]: peak for path, peak in json.loads(done.stdout).items()}
    assert min(peaks.values()) > 3.9 * SIZE[0] * SIZE[1]  # the result alone takes this much: the measurement works
    limits = {name: (20 if name == "WEBP" else 12) * SIZE[0] * SIZE[1] + BANDS for name in peaks}
    assert {name: peak for name, peak in peaks.items() if peak > limits[name]} == {}


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "1"])
def test_converting_in_bands_gives_the_same_pixels(mode, monkeypatch):
    """Bands of seven rows with a remainder, compared with the whole image in one band."""
    noise = np.random.default_rng(0)
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(noise.integers(0, 65536, (101, 37)).astype(dtype))
    else:
        image = Image.fromarray(noise.integers(0, 256, (101, 37, 4), dtype=np.uint8)).convert(mode)
    kind = "TIFF" if mode in ("CMYK", "I", "F") else "PNG"
    whole = load(saved(image, kind))
    monkeypatch.setattr(pixels, "BAND_PIXELS", 37 * 7)
    assert np.array_equal(load(saved(image, kind)), whole)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_matches_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "jpeg"})):
        content = saved(image, kind, exif=exif, **options)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        assert np.array_equal(load(content), expected.convert("RGB"))


def test_a_tile_over_the_pixel_limit_is_refused():
    """libtiff decodes whole tiles: 64 x 64 pixels in a tile of 16384 x 16384 would take 270 MB."""
    tile = zlib.compress(bytes(16384 * 16384), 9)
    with pytest.raises(RowError, match=r"tiles of 16384 x 16384 pixels, the limit is 40000000") as caught:
        load(
            tiff(
                {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16384, 323: 16384, 324: 8, 325: len(tile)}, tile
            )
        )
    assert caught.value.kind == "too_many_pixels"
