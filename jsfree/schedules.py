"""The learning-rate schedule that pre-training and DPO share. Pure."""

from __future__ import annotations

import math


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Factor of the peak learning rate: linear warm-up, then a cosine to zero.

    Args:
        step: optimizer step, from 0.
        total: steps of the whole training, where the cosine reaches zero.
        warmup: steps of the warm-up; the last of them has the peak rate.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
