"""Converts a decoded image of any mode to upright 8-bit RGB in bounded memory.

Conversions that work on the whole image hold several copies of it at once (16-bit levels as 8-byte floats, three
RGBA layers). Here they work on bands of at most ``BAND_PIXELS`` pixels, so that no more than the decoded image and
the RGB result (Pillow stores 4 bytes a pixel) exist together.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

from PIL import ExifTags, Image

BAND_PIXELS = 2**18
# What Pillow's decoders raise on damaged files, found by fuzzing them; anything else is a bug that should show.
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
    """Convert a decoded image to RGB with its EXIF orientation applied, and close it.

    Transparency is composited over white. Grey levels of 16 bits are divided by 257; those of 32 bits are stretched
    from their own minimum to their maximum, with NaN and infinity as 0.
    """
    turn = _orientation(image)
    converted = _rgb(image)
    image.close()  # frees its pixels before a rotation allocates its result
    return converted if turn is None else converted.transpose(turn)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """The transposition that EXIF or XMP asks for; None where there is none, or where the metadata is damaged."""
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
    """Boxes of full width that cover the image."""
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
    """The levels that become black and white; None for a mode of 8 bits or fewer."""
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
    """The levels of a band as an array of float64, NaN and infinity as 0."""
    import numpy as np

    return np.nan_to_num(np.asarray(band).astype(np.float64), copy=False, posinf=0, neginf=0)
