"""Hallucination ratios of the two captions of a pair (paper, section 3.3)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jsfree.config import Ratios
from jsfree.decoding.sampling import noise_key


class RatioPair(NamedTuple):
    """Hallucination ratios in [0, 1]; ``low`` is that of the provisional winner."""

    low: float
    high: float


def draw_ratios(settings: Ratios, seed: int, round_number: int, sample_id: str) -> RatioPair:
    """Draw the ratios of a pair. The result depends only on the arguments.

    Gaussian draws outside [0, 1] are clipped; the paper does not specify this case.
    """
    generator = np.random.Generator(np.random.Philox(key=noise_key(seed, round_number, sample_id, "ratios")))
    if settings.distribution == "fixed":
        first, second = settings.low, settings.high
    elif settings.distribution == "uniform":
        first, second = generator.random(2)
    else:
        first, second = np.clip(generator.normal(settings.mean, settings.std, 2), 0.0, 1.0)
    if settings.winner == "zero":
        return RatioPair(0.0, float(second))
    return RatioPair(float(min(first, second)), float(max(first, second)))
