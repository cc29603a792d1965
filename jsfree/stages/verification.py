"""Verifies the sentences of an image's candidates without labels: by CLIP and by the captioner's own likelihood.

The evidence for a claim (``claims.py``) is pooled over all candidates of the image: the highest cosine and the highest
probability among the sentences that make the claim. True claims recur in several wordings, of which one scores well;
hallucinated claims rarely do both. A mixture of two Gaussians, whose common covariance is diagonal, is fitted to the
evidence of a round by expectation-maximisation and maps evidence to log-odds, linearly. The signals are treated as
independent because a full covariance can make the weight of a signal negative, which is wrong for both of them. Claims
that the captioner is nearly always certain of, such as the context of a scene, would be a third kind; they are left out
of the fit.

The zero point of the log-odds is halfway between that of the mixture and the valley of their density. The mixture lets
more false claims pass, because the tails of real ones are heavier than Gaussian ones; the valley stops more true claims
(docs/log.md).

Shape suffixes: N claims, F = 2 signals (cosine, probability).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jsfree.errors import StageError
from jsfree.stages.candidate_sentences import Sentence
from jsfree.stages.claims import Claims

FloatArray = NDArray[np.float64]
Signals = Literal["clip+likelihood", "clip", "likelihood"]
ITERATIONS = 100
MIN_CLAIMS = 50
"""Fewest claims that a mixture is fitted to."""
GRID = 512
"""Points at which the density of log-odds is evaluated."""
VALLEY_WEIGHT = 0.5
"""Where the zero point is between that of the mixture (0) and the valley of the log-odds' density (1)."""


@dataclass(frozen=True)
class Verifier:
    """Log-odds that a claim is true, from its evidence: ``weights_F`` . (cosine, probability) + ``bias``."""

    weights_F: tuple[float, float]
    bias: float

    def logit(self, cosine: float, probability: float) -> float:
        """Log-odds that a claim or sentence with this evidence is true."""
        return self.weights_F[0] * cosine + self.weights_F[1] * probability + self.bias

    def as_json(self) -> dict[str, Any]:
        """The verifier as it is stored."""
        return {"weights": {"cosine": self.weights_F[0], "probability": self.weights_F[1]}, "bias": self.bias}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Verifier:
        """The inverse of ``as_json``."""
        return cls((stored["weights"]["cosine"], stored["weights"]["probability"]), stored["bias"])


def pool(sentences: Iterable[Sentence], claims: Claims) -> dict[str, tuple[float, float]]:
    """Evidence for each claim of an image: the highest cosine and probability among the sentences that make it."""
    pooled: dict[str, tuple[float, float]] = {}
    for sentence in sentences:
        for claim, probability in claims.probabilities(sentence).items():
            cosine, highest = pooled.get(claim, (-math.inf, 0.0))
            pooled[claim] = max(cosine, sentence.cosine), max(highest, probability)
    return pooled


def fit_verifier(evidence_NF: FloatArray, signals: Signals = "clip+likelihood") -> Verifier:
    """Fit log-odds to the evidence of a round's claims, without labels.

    Args:
        evidence_NF: cosine and probability of each claim.
        signals: the signals to use; the other one gets weight 0.

    Raises:
        StageError: there are too few claims, or the two signals do not separate the same two kinds.
    """
    used = [number for number, name in enumerate(("clip", "likelihood")) if name in signals]
    if len(evidence_NF) < MIN_CLAIMS:
        raise StageError(
            f"{len(evidence_NF)} claims of sentences are too few to fit a verifier, which needs {MIN_CLAIMS}",
            "use more images, or 'select.strategy: gap'",
        )
    mixture = _fit_mixture(evidence_NF[:, used])
    if not (mixture.weights_F > 0).all():
        raise StageError(
            "CLIP's cosines and the captioner's probabilities disagree on which claims are likely, so no verifier fits"
            " both",
            "verify with one signal ('select.coverage.signals: likelihood'), or use 'select.strategy: gap'",
        )
    logits_N = evidence_NF[:, used] @ mixture.weights_F + mixture.bias
    lower, upper = sorted(float(mean_F @ mixture.weights_F) + mixture.bias for mean_F in mixture.means)
    weights = np.zeros(2)
    weights[used] = mixture.weights_F
    zero = VALLEY_WEIGHT * valley(logits_N, lower, upper)
    return Verifier((float(weights[0]), float(weights[1])), mixture.bias - zero)


class _Mixture(NamedTuple):
    """Log-odds of two Gaussians with a common diagonal covariance, and their means, (F,) each."""

    weights_F: FloatArray
    bias: float
    means: tuple[FloatArray, FloatArray]


def _fit_mixture(evidence_NF: FloatArray) -> _Mixture:
    """Fit two Gaussians with a common diagonal covariance by expectation-maximisation."""
    mean_F, spread_F = evidence_NF.mean(0), evidence_NF.std(0) + 1e-12
    scaled_NF = (evidence_NF - mean_F) / spread_F
    total_N = scaled_NF.sum(1)
    upper_N = np.where(total_N > np.median(total_N), 0.9, 0.1)
    for _ in range(ITERATIONS):
        share = upper_N.mean()
        upper_F, lower_F = (weight_N @ scaled_NF / max(weight_N.sum(), 1e-12) for weight_N in (upper_N, 1 - upper_N))
        variance_F = (upper_N @ (scaled_NF - upper_F) ** 2 + (1 - upper_N) @ (scaled_NF - lower_F) ** 2) / len(upper_N)
        weights_F = (upper_F - lower_F) / (variance_F + 1e-9)
        bias = float(math.log(share / (1 - share)) - weights_F @ (upper_F + lower_F) / 2)
        upper_N = 1 / (1 + np.exp(-np.clip(scaled_NF @ weights_F + bias, -50, 50)))
        upper_N = np.clip(upper_N, 1e-9, 1 - 1e-9)
    unscaled_F: FloatArray = weights_F / spread_F
    means = upper_F * spread_F + mean_F, lower_F * spread_F + mean_F
    return _Mixture(unscaled_F, bias - float(unscaled_F @ mean_F), means)


def valley(logits_N: FloatArray, lower: float, upper: float) -> float:
    """The log-odds between ``lower`` and ``upper`` where a sample is rarest; 0 if its density has no valley there.

    The density is a Gaussian kernel estimate with Silverman's bandwidth. The depth of a point is its density relative
    to the lower of the highest densities on its left and on its right.
    """
    low, high = np.percentile(logits_N, [0.5, 99.5])
    grid_G = np.linspace(low, high, GRID)
    quartiles = np.subtract(*np.percentile(logits_N, [75, 25])) / 1.34
    width = 0.9 * min(logits_N.std(), quartiles or math.inf) * len(logits_N) ** -0.2
    counts_G, _ = np.histogram(logits_N, bins=GRID, range=(low, high))
    kernel = np.exp(-0.5 * ((grid_G - grid_G[GRID // 2]) / max(width, 1e-12)) ** 2)
    density_G = np.convolve(counts_G, kernel, mode="same")
    left_G = np.maximum.accumulate(density_G)
    right_G = np.maximum.accumulate(density_G[::-1])[::-1]
    depth_G = density_G / np.minimum(left_G, right_G)
    deepest = int(np.argmin(np.where((grid_G >= lower) & (grid_G <= upper), depth_G, np.inf)))
    return float(grid_G[deepest]) if depth_G[deepest] < 0.9 else 0.0
