"""LLaVA's original preprocessing of images: a square of the longer side, in memory bounded by the image."""

from __future__ import annotations

import math

from PIL import Image

BAND_PIXELS = 2**20
MARGIN = 4
"""Pixels of the result beyond an image's edge that resampling may change: Lanczos, the widest filter, reaches 3."""


def pad_to_square(
    image: Image.Image, colour: tuple[int, ...], largest: int | None = None, resample: int = Image.Resampling.BICUBIC
) -> Image.Image:
    """Centre ``image`` on a square of its longer side, filled with ``colour`` (LLaVA's original preprocessing).

    A square of more than ``largest`` pixels a side is scaled down to that. The result equals padding first and scaling
    the square with Pillow, within 1 of 255 levels. It is computed a few rows at a time, because the square of a thin
    strip takes gigabytes where its file takes kilobytes.
    """
    side = max(image.size)
    scaled = side if largest is None else min(side, largest)
    scale = side / scaled
    left, top = (side - image.width) // 2, (side - image.height) // 2
    # Only the columns that the image reaches differ from the filling; MARGIN is wider than any filter.
    first, last = max(0, int(left / scale) - MARGIN), min(scaled, math.ceil((left + image.width) / scale) + MARGIN)
    begin, end = max(0, int((first - MARGIN) * scale)), min(side, math.ceil((last + MARGIN) * scale))
    squared = Image.new("RGB", (scaled, side), colour)
    rows = max(1, BAND_PIXELS // (end - begin))
    for start in range(0, image.height, rows):
        band = Image.new("RGB", (end - begin, min(rows, image.height - start)), colour)
        band.paste(image.crop((0, start, image.width, start + band.height)), (left - begin, 0))
        columns = (first * scale - begin, 0, last * scale - begin, band.height)
        squared.paste(band.resize((last - first, band.height), resample, columns), (first, top + start))
    return squared.resize((scaled, scaled), resample)
