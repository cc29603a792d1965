"""95 % intervals: the bootstrap over samples, and Wilson's interval of a share.

Resampling draws whole samples (captions, questions), never mentions or words, because those of one sample depend on
each other. A resample is a vector of counts, so that a statistic of sums needs one matrix product.

Shapes: N samples, K columns, R resamples.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jsfree.errors import ConfigError

FloatArray = NDArray[np.float64]
Statistic = Callable[[FloatArray], FloatArray]
"""Maps sums over samples, (R, K), to the statistic, (R,)."""

RESAMPLES = 1000
Z95 = 1.959963984540054


class Interval(NamedTuple):
    """An estimate with its 95 % interval; all three are NaN if the estimate is undefined."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """The interval as metric files store it; NaN becomes 0."""
        value, low, high = np.nan_to_num(self).tolist()
        return {"value": value, "low": low, "high": high}


UNDEFINED = Interval(math.nan, math.nan, math.nan)


def bootstrap(columns_NK: ArrayLike, statistic: Statistic, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile bootstrap of a statistic of column sums.

    Raises:
        ConfigError: there are no samples.
    """
    columns = np.asarray(columns_NK, np.float64)
    if len(columns) == 0:
        raise ConfigError("an interval was requested of no samples", "pass at least one")
    value = float(statistic(columns.sum(0, keepdims=True))[0])
    sums_RK = resample_counts(len(columns), resamples, seed) @ columns
    estimates = statistic(sums_RK)
    estimates = estimates[~np.isnan(estimates)]
    if math.isnan(value) or len(estimates) == 0:
        return UNDEFINED
    low, high = np.percentile(estimates, (2.5, 97.5))
    return Interval(value, float(low), float(high))


def mean_interval(values_N: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of one value per sample."""
    return ratio_interval(values_N, np.ones_like(np.asarray(values_N, np.float64)), resamples, seed)


def ratio_interval(
    numerators_N: ArrayLike, denominators_N: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Pooled ratio: sum of numerators over sum of denominators."""
    columns = np.stack([np.asarray(numerators_N, np.float64), np.asarray(denominators_N, np.float64)], 1)
    return bootstrap(columns, lambda sums_RK: divide(sums_RK[:, 0], sums_RK[:, 1]), resamples, seed)


def wilson(successes: int, total: int, z: float = Z95) -> Interval:
    """Wilson's interval of a share; without trials, NaN with the interval [0, 1].

    Args:
        z: quantile of the normal distribution; the default gives a two-sided 95 % interval.

    Raises:
        ConfigError: more successes than trials, or a negative count.
    """
    if not 0 <= successes <= total:
        raise ConfigError(f"{successes} successes of {total} trials is impossible")
    if total == 0:
        return Interval(math.nan, 0.0, 1.0)
    share, spread = successes / total, z**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


@lru_cache(maxsize=1)  # every metric of a set of captions has the same resamples
def resample_counts(samples: int, resamples: int, seed: int) -> FloatArray:
    """How often each sample is drawn in each resample, (R, N), read-only; rows sum to N."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(samples, np.full(samples, 1 / samples), size=resamples).astype(np.float64)
    counts.flags.writeable = False
    return counts


def divide(numerators: FloatArray, denominators: FloatArray) -> FloatArray:
    """Element-wise ratio, NaN where the denominator is 0."""
    safe = np.where(denominators == 0, 1.0, denominators)
    return np.where(denominators == 0, np.nan, numerators / safe)
