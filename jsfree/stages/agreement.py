"""Agreement of two scorers about the order of pairs, and the gap of a pair by both. Pure functions.

A scorer's difference is the mean score of the provisional winner minus that of the provisional loser; the pair is
inverted by this scorer if it is below zero (Algorithm 1, line 12). Two scorers agree if both or neither invert.

Cosines of different models are on different scales, so that a sum of differences would follow the model with the wider
scale. Each scorer's differences are therefore divided by their root mean square over the round, its spread: 1 is then a
typical difference of this scorer. The gap is the mean of the two, and has the sign that both agree on.

Shape suffixes: P pairs, S scorers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Agreement:
    """How often two scorers agree, over pairs with different captions.

    Attributes:
        pairs: number of pairs.
        both_inverted, first_inverted, second_inverted: pairs inverted by both scorers, and by only one of them.
        share: fraction of pairs on which they agree; None without pairs.
        kappa: Cohen's kappa, the agreement beyond chance; None if it is undefined, because both give all pairs the same
            order.
        spreads: spread of each scorer's differences, in units of its cosine.
    """

    pairs: int
    both_inverted: int
    first_inverted: int
    second_inverted: int
    share: float | None
    kappa: float | None
    spreads: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return {**asdict(self), "spreads": list(self.spreads)}


def disagree(differences_PS: FloatArray) -> BoolArray:
    """Whether the scorers disagree about the order of each pair, (P,); never with one scorer."""
    inverted_PS = differences_PS < 0
    return np.asarray(inverted_PS.any(1) & ~inverted_PS.all(1))


def spread(differences_PS: FloatArray) -> FloatArray:
    """Root mean square of each scorer's differences, (S,); 1 for a scorer whose differences are all zero."""
    squares_S = (differences_PS**2).mean(0) if len(differences_PS) else np.zeros(differences_PS.shape[1])
    spread_S: FloatArray = np.where(squares_S > 0, np.sqrt(squares_S), 1.0)
    return spread_S


def joint_differences(differences_PS: FloatArray, spread_S: FloatArray) -> FloatArray:
    """Difference of each pair by all scorers, (P,): with one, its own in units of the cosine; with two, see above."""
    if differences_PS.shape[1] == 1:
        return differences_PS[:, 0]
    joint_P: FloatArray = (differences_PS / spread_S).mean(1)
    return joint_P


def agreement(differences_PS: FloatArray) -> Agreement:
    """Agreement of two scorers on pairs with different captions.

    Args:
        differences_PS: differences by two scorers.
    """
    first_P, second_P = (differences_PS < 0).T
    pairs, both = len(first_P), int((first_P & second_P).sum())
    return Agreement(
        pairs=pairs,
        both_inverted=both,
        first_inverted=int(first_P.sum()) - both,
        second_inverted=int(second_P.sum()) - both,
        share=float((first_P == second_P).mean()) if pairs else None,
        kappa=cohens_kappa(first_P, second_P),
        spreads=tuple(spread(differences_PS).tolist()),
    )


def cohens_kappa(first_P: BoolArray, second_P: BoolArray) -> float | None:
    """Agreement of two binary labels beyond chance: (observed - expected) / (1 - expected). Cohen (1960).

    1 is perfect, and 0 what independent labels of the same frequencies would give. None if all labels are equal, or
    there are none.
    """
    if not len(first_P):
        return None
    observed, first, second = float((first_P == second_P).mean()), float(first_P.mean()), float(second_P.mean())
    expected = first * second + (1 - first) * (1 - second)
    return None if expected == 1 else (observed - expected) / (1 - expected)
