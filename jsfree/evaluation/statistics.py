"""Intervals for figures measured on samples: the bootstrap over samples, and Wilson's for one share.

Everything resamples whole samples (captions, questions), never mentions or words, because those of one
sample hang together. Resamples are counts, so that a statistic of sums needs one matrix product.

Shapes: N samples, K columns, R resamples.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jsfree.errors import ConfigError

FloatArray = NDArray[np.float64]
# From sums over samples, (R, K), to the statistic, (R,).
Statistic = Callable[[FloatArray], FloatArray]

RESAMPLES = 1000
Z95 = 1.959963984540054


class Interval(NamedTuple):
    """A figure with its 95 % interval; all three are NaN where the figure is undefined."""

    value: float
    low: float
    high: float


def bootstrap(columns_NK: ArrayLike, statistic: Statistic, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile bootstrap of a statistic of column sums; ``columns_NK`` is (N, K).

    Raises:
        ConfigError: there is no sample.
    """
    columns = np.asarray(columns_NK, np.float64)
    if len(columns) == 0:
        raise ConfigError("an interval was asked of no samples", "pass at least one")
    value = float(statistic(columns.sum(0, keepdims=True))[0])
    sums_RK = resample_counts(len(columns), resamples, seed) @ columns
    spread = statistic(sums_RK)
    spread = spread[~np.isnan(spread)]
    if math.isnan(value) or len(spread) == 0:
        return Interval(math.nan, math.nan, math.nan)
    low, high = np.percentile(spread, (2.5, 97.5))
    return Interval(value, float(low), float(high))


def mean_interval(values_N: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of one value a sample."""
    return ratio_interval(values_N, np.ones_like(np.asarray(values_N, np.float64)), resamples, seed)


def ratio_interval(
    numerators_N: ArrayLike, denominators_N: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Pooled ratio: sum of numerators over sum of denominators."""
    columns = np.stack([np.asarray(numerators_N, np.float64), np.asarray(denominators_N, np.float64)], 1)
    return bootstrap(columns, lambda sums_RK: divide(sums_RK[:, 0], sums_RK[:, 1]), resamples, seed)


def paired_difference(before_N: ArrayLike, after_N: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of ``after - before`` over the same samples; an interval without 0 is a difference.

    Raises:
        ConfigError: the two do not belong to the same samples.
    """
    before, after = np.asarray(before_N, np.float64), np.asarray(after_N, np.float64)
    if before.shape != after.shape:
        raise ConfigError(f"a paired difference needs the same samples twice, got {before.shape} and {after.shape}")
    return mean_interval(after - before, resamples, seed)


def wilson(successes: int, total: int) -> Interval:
    """Wilson's 95 % interval of a share; of no trials, NaN with the interval [0, 1].

    Raises:
        ConfigError: more successes than trials, or a negative count.
    """
    if not 0 <= successes <= total:
        raise ConfigError(f"{successes} successes of {total} trials is impossible")
    if total == 0:
        return Interval(math.nan, 0.0, 1.0)
    share, spread = successes / total, Z95**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def resample_counts(samples: int, resamples: int, seed: int) -> FloatArray:
    """How often each sample is drawn in each resample, (R, N); rows sum to N."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(samples, np.full(samples, 1 / samples), size=resamples).astype(np.float64)


def divide(numerators: FloatArray, denominators: FloatArray) -> FloatArray:
    """Element-wise ratio, NaN where the denominator is 0."""
    safe = np.where(denominators == 0, 1.0, denominators)
    return np.where(denominators == 0, np.nan, numerators / safe)
