"""Agreement of two judges on the same items: Cohen's kappa and correlations, as pure functions.

Shapes: N items.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jsfree.errors import ConfigError

FloatArray = NDArray[np.float64]


def cohen_kappa(
    first: Sequence[Hashable], second: Sequence[Hashable], weights: Literal["none", "linear", "quadratic"] = "none"
) -> float:
    """Cohen's kappa (Cohen 1960): agreement beyond that expected by chance; 1 is perfect, 0 is chance.

    Args:
        first: N labels of one judge.
        second: N labels of the other judge.
        weights: how disagreements count (Cohen 1968). With ``linear`` and ``quadratic`` the labels are numbers, and a
            disagreement counts by its distance or the square of it.

    Returns:
        NaN if both judges always give one and the same label, because chance then explains everything.

    Raises:
        ConfigError: the sequences are empty or have different lengths, or weighted labels are not numbers.
    """
    _check(first, second)
    labels = sorted(set(first) | set(second), key=lambda label: (str(type(label)), label))
    numbers = {label: number for number, label in enumerate(labels)}
    joint = np.zeros((len(labels), len(labels)))
    for one, other in zip(first, second, strict=True):
        joint[numbers[one], numbers[other]] += 1 / len(first)
    expected = np.outer(joint.sum(1), joint.sum(0))
    cost = _disagreement(labels, weights)
    by_chance = float((cost * expected).sum())
    return 1 - float((cost * joint).sum()) / by_chance if by_chance else math.nan


def _disagreement(labels: Sequence[Hashable], weights: str) -> FloatArray:
    if weights == "none":
        return 1 - np.eye(len(labels))
    try:
        values = np.array(labels, np.float64)
    except ValueError:
        raise ConfigError("weighted kappa needs numbers as labels", "use weights='none'") from None
    distance = np.abs(values[:, None] - values[None, :])
    return distance if weights == "linear" else distance**2


def pearson(first_N: ArrayLike, second_N: ArrayLike) -> float:
    """Pearson's correlation; NaN if the scores of a judge are all equal.

    Raises:
        ConfigError: the sequences are empty or have different lengths.
    """
    one, other = np.asarray(first_N, np.float64), np.asarray(second_N, np.float64)
    _check(one.tolist(), other.tolist())
    one, other = one - one.mean(), other - other.mean()
    norm = math.sqrt(float((one**2).sum()) * float((other**2).sum()))
    return float(one @ other) / norm if norm > 0 else math.nan


def spearman(first_N: ArrayLike, second_N: ArrayLike) -> float:
    """Spearman's rank correlation; equal scores share their mean rank.

    Raises:
        ConfigError: the sequences are empty or have different lengths.
    """
    return pearson(_ranks(np.asarray(first_N, np.float64)), _ranks(np.asarray(second_N, np.float64)))


def _ranks(values_N: FloatArray) -> FloatArray:
    smaller = (values_N[None, :] < values_N[:, None]).sum(1)
    equal = (values_N[None, :] == values_N[:, None]).sum(1)
    return np.asarray(smaller + (equal + 1) / 2, np.float64)


def _check(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second) or not len(first):
        raise ConfigError(
            f"agreement needs two judgements of the same items, not {len(first)} and {len(second)}",
            "keep the items that both judged",
        )
