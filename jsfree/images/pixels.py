"""Converts a decoded image of any mode to upright 8-bit RGB in bounded memory.

Converting a whole image at once would need several copies of it (16-bit levels as 8-byte floats, three RGBA layers).
Images are therefore converted in bands of at most ``BAND_PIXELS`` pixels, so memory is that of the decoded image and
the RGB result, which Pillow stores with 4 bytes per pixel.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

from PIL import ExifTags, Image

BAND_PIXELS = 2**18
# Exceptions of Pillow's decoders on damaged files, found by fuzzing. Any other exception is a bug and is not caught.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    ArithmeticError,
    EOFError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
    Warning,
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image to RGB, apply its EXIF orientation, and close it.

    Transparent pixels are composited over white. 16-bit gray levels are divided by 257. 32-bit levels are scaled such
    that their minimum becomes black and their maximum white; NaN and infinity count as 0.
    """
    transposition = _orientation(image)
    converted = _rgb(image)
    image.close()  # frees its pixels before a rotation allocates its result
    return converted if transposition is None else converted.transpose(transposition)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition given by EXIF or XMP; None if there is none or the metadata are damaged."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGED:
        return None


def _rgb(image: Image.Image) -> Image.Image:
    converted = Image.new("RGB", image.size)
    levels = _levels(image)
    for box in _bands(image):
        converted.paste(_rgb_band(image.crop(box), levels), box)
    return converted


def _bands(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Split the image into boxes of full width."""
    rows = max(1, BAND_PIXELS // image.width)
    return [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]


def _rgb_band(band: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    if levels is not None:
        return _eight_bit(band, *levels).convert("RGB")
    if band.has_transparency_data:
        layer = band.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return band.convert("RGB")


def _levels(image: Image.Image) -> tuple[float, float] | None:
    """Return the levels of black and white; None for modes with at most 8 bits."""
    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    if image.mode not in ("I", "F"):
        return None
    bands = (_numbers(image.crop(box)) for box in _bands(image))
    lows, highs = zip(*((band.min(), band.max()) for band in bands), strict=True)
    return float(min(lows)), float(max(highs))


def _eight_bit(band: Image.Image, low: float, high: float) -> Image.Image:
    import numpy as np

    scaled = (_numbers(band) - low) * (255 / (high - low) if high > low else 0)
    return Image.fromarray(scaled.round().astype(np.uint8))


def _numbers(band: Image.Image) -> Any:
    """Convert the levels of a band to float64, with NaN and infinity as 0."""
    import numpy as np

    return np.nan_to_num(np.asarray(band).astype(np.float64), copy=False, posinf=0, neginf=0)
