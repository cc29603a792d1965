"""Padding after scaling gives the result of padding first, without the memory for the full square."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from jsfree.models.loading import Captioner
from jsfree.models.padding import pad_to_square

MEAN = (122, 116, 104)
SIZES = [(640, 480), (480, 640), (500, 500), (1500, 61), (61, 1500), (65, 64), (64, 64), (20, 40), (997, 13)]
MEASURE = """
import json, os, resource
from PIL import Image
from jsfree.models.padding import pad_to_square

def peak(size):
    out, into = os.pipe()
    if not os.fork():
        image = Image.new("RGB", size, "teal")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pad_to_square(image, (1, 2, 3), 336)
        os.write(into, str(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)).encode())
        os._exit(0)
    os.close(into)
    os.wait()
    return int(os.read(out, 100) or -1)

print(json.dumps([peak(size) for size in [(64, 64), (12_000, 120), (120, 12_000), (200, 20_000), (20_000, 200)]]))
"""


def pixels_of(captioner: Captioner, image: Image.Image) -> torch.Tensor:
    return captioner.inputs(image).tensors["pixel_values"]


def picture(width: int, height: int) -> Image.Image:
    """Blocks with sharp edges, so that a shift by a fraction of a pixel is detected."""
    noise = np.random.default_rng(width).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


def padded_first(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), MEAN)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def difference(one, other) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pad_to_square_matches_padding_before_scaling(size, resample):
    image = picture(*size)
    side = min(64, max(size))
    expected = padded_first(image).resize((side, side), resample)
    assert difference(pad_to_square(image, MEAN, 64, resample), expected) <= 1
    assert difference(pad_to_square(image, MEAN), padded_first(image)) == 0


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_captioner_pixels_match_padding_before_scaling(captioner: Captioner, size):
    """Equal within two of 255 levels: the processor resamples with torchvision, ``pad_to_square`` with Pillow."""
    image = picture(*size)
    padding = replace(captioner, preprocessing="pad")
    filling = tuple(round(255 * channel) for channel in captioner.processor.image_processor.image_mean)
    side = max(size)
    square = Image.new("RGB", (side, side), filling)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    levels = 0.5 * 255  # the processor divides by 255, subtracts the mean and divides by the standard deviation of 0.5
    assert ((pixels_of(padding, image) - pixels_of(captioner, square)).abs() * levels).max() < 2.01
    assert pixels_of(padding, image).dtype == torch.float32


def test_padding_a_thin_strip_does_not_allocate_the_full_square():
    """A square with sides of 20,000 pixels would take 1.6 GB; the strip itself takes about a hundredth of that."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout)
    assert min(peaks) >= 0
    assert max(peaks) < 50e6
