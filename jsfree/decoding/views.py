"""Views of an image: translations of its preprocessed pixels, whose next-token probabilities are averaged.

A small object falls on the grid of patches differently in each view, so that a mistake of one view is outvoted.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F

from jsfree.config import Views
from jsfree.models.families.base import ImageInputs
from jsfree.models.loading import Captioner

LATTICE = 0.7548776662466927, 0.5698402909980532
"""Steps of the R2 sequence (M. Roberts, 2018), the two-dimensional counterpart of the golden ratio: 1 / g and 1 / g^2
with g^3 = g + 1."""


def translations(views: Views) -> list[tuple[int, int]]:
    """The translations (x, y) of a caption's views in pixels; the first is (0, 0), and all are different.

    They are the same for every image, so that all captions of an image, whatever their noise, share the prefill of each
    view. On 500 development scenes of MiniWorld, 10.2 % of a trained model's captions hallucinate with five views of a
    shift of 6, as with translations drawn for each image (10.2 %); 12.6 % with the corners of the square, 18.0 % with
    one view.
    """
    found = [(0, 0)]
    number = 0
    while len(found) < views.count:
        number += 1
        x, y = (round(2 * views.shift * (math.fmod(0.5 + number * step, 1.0) - 0.5)) for step in LATTICE)
        if (x, y) not in found:
            found.append((x, y))
    return found


def views_of(captioner: Captioner, image: ImageInputs, views: Views) -> list[ImageInputs]:
    """The views of a preprocessed image; the first is the image itself."""
    if views.count == 1:
        return [image]
    return [
        captioner.map_pixels(image, partial(_translate, right=x, down=y, most=views.shift))
        for x, y in translations(views)
    ]


def _translate(pixels: torch.Tensor, right: int, down: int, most: int) -> torch.Tensor:
    """Move pixels (3, height, width) by at most ``most``; those at the edge are repeated."""
    height, width = pixels.shape[1:]
    padded = F.pad(pixels[None], (most,) * 4, mode="replicate")[0]
    return padded[:, most - down : most - down + height, most - right : most - right + width]
