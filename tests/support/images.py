"""Preprocessed images of tests."""

import math

from jsfree.models.families.base import PIXELS, ImageInputs


def spoiled(image: ImageInputs) -> ImageInputs:
    """The image with NaN instead of its pixels."""
    return ImageInputs({**image.tensors, PIXELS: image.tensors[PIXELS] * math.nan}, image.text)
