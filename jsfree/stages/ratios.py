"""Hallucination ratios (paper, section 3.3): how strongly each caption of a pair is led by the language prior."""

from __future__ import annotations

import numpy as np

from jsfree.config import Ratios
from jsfree.decoding.sampling import noise_key


def draw_ratios(settings: Ratios, seed: int, round_number: int, sample_id: str) -> tuple[float, float]:
    """The (lower, higher) ratio of a sample's pair; a function of the arguments alone.

    Gaussian draws outside [0, 1] are clipped: the paper does not say what happens to them.
    """
    generator = np.random.Generator(np.random.Philox(key=noise_key(seed, round_number, sample_id, "ratios")))
    if settings.distribution == "fixed":
        first, second = settings.low, settings.high
    elif settings.distribution == "uniform":
        first, second = generator.random(2)
    else:
        first, second = np.clip(generator.normal(settings.mean, settings.std, 2), 0.0, 1.0)
    if settings.winner == "zero":
        return 0.0, float(second)
    return float(min(first, second)), float(max(first, second))
