"""Pads images to squares, as in LLaVA's original preprocessing, in memory bounded by the size of the image."""

from __future__ import annotations

import math

from PIL import Image

BAND_PIXELS = 2**20
MARGIN = 4
"""Pixels beyond the edge of the image that resampling can affect. Lanczos, the widest filter, has a radius of 3."""


def pad_to_square(
    image: Image.Image, color: tuple[int, ...], max_side: int | None = None, resample: int = Image.Resampling.BICUBIC
) -> Image.Image:
    """Center an image on a square with the side of its longer side, filled with ``color``.

    If the side exceeds ``max_side``, the square is scaled down to it. The result equals padding followed by scaling
    with Pillow, up to 1 of 255 levels. It is computed a few rows at a time, because the square of a thin strip can take
    gigabytes.
    """
    side = max(image.size)
    scaled = side if max_side is None else min(side, max_side)
    scale = side / scaled
    left, top = (side - image.width) // 2, (side - image.height) // 2
    # Only columns near the image differ from the fill color.
    first, last = max(0, int(left / scale) - MARGIN), min(scaled, math.ceil((left + image.width) / scale) + MARGIN)
    begin, end = max(0, int((first - MARGIN) * scale)), min(side, math.ceil((last + MARGIN) * scale))
    squared = Image.new("RGB", (scaled, side), color)
    rows = max(1, BAND_PIXELS // (end - begin))
    for start in range(0, image.height, rows):
        band = Image.new("RGB", (end - begin, min(rows, image.height - start)), color)
        band.paste(image.crop((0, start, image.width, start + band.height)), (left - begin, 0))
        columns = (first * scale - begin, 0, last * scale - begin, band.height)
        squared.paste(band.resize((last - first, band.height), resample, columns), (first, top + start))
    return squared.resize((scaled, scaled), resample)
