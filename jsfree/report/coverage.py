"""What ``select.strategy: coverage`` did in a round, for the round's section: its verifier and the pairs it formed.

Its gaps are differences of coverage (``stages.composition``), not of mean sentence scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsfree.evaluation.metrics import MISSING
from jsfree.report import tables


@dataclass(frozen=True)
class CoverageView:
    """The verifier as a formula, and numbers of images, formatted.

    ``edited`` counts the pairs whose rejected caption is an edit of the chosen one; ``open_ended`` those whose composed
    caption has no end token; ``unformed`` the images without a pair; ``without_likelihood`` those whose
    log-probabilities under m0 are missing.
    """

    verifier: str
    is_own: bool
    """Whether the verifier was fitted in this round; otherwise it is that of round 1."""
    images: str
    kept: str
    edited: str
    open_ended: str
    unformed: str
    without_likelihood: str

    @classmethod
    def of(cls, number: int, facts: Mapping[str, Any], score: str) -> CoverageView:
        """Describe round ``number`` from the facts of its selection; ``score`` names the score of a sentence."""
        names = ("pairs", "kept", "edited", "open_ended", "unformed", "without_likelihood")
        counts = (facts.get(name, 0) for name in names)
        return cls(verifier_formula(facts.get("verifier", {}), score), number == 1, *map(tables.whole, counts))


def verifier_formula(verifier: Mapping[str, Any], score: str = "CLIP cosine") -> str:
    """The log-odds that a verifier gives to a claim, as a sum; empty if it is unknown."""
    signals = {"cosine": score, "probability": "probability"}
    weights = [(signals.get(name, name), weight) for name, weight in verifier.get("weights", {}).items() if weight]
    terms = [(weight, f"{abs(weight):.2f} × {signal}") for signal, weight in weights]
    if not terms:
        return ""
    bias = float(verifier.get("bias", 0.0))
    first, *rest = terms
    others = [*rest, (bias, f"{abs(bias):.2f}")]
    return ("−" if first[0] < 0 else "") + first[1] + "".join(f" {'−' if w < 0 else '+'} {term}" for w, term in others)


def gap(value: float | None) -> str:
    """A difference of coverage; 1 is two certainly true claims."""
    return MISSING if value is None else f"{value:.2f}".replace("-", "−")


def log_odds(logit: float) -> str:
    """Log-odds that a sentence is true, with their sign."""
    return f"{logit:+.1f}".replace("-", "−")
