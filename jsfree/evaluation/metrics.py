"""The table of metrics: what each is called, what it measures, how it is written, and which direction is better.

``TRUTH`` are the metrics of ``metrics.json``, ``LABEL_FREE`` those of ``label_free.json``. Console, report, model card
and benchmarks take names, labels and formats from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MISSING = "–"


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        name: its key in the files of metrics.
        label: what readers see.
        meaning: what it measures, in a few words.
        better: the better direction; None if neither is.
        scale: factor from the stored value to the displayed one.
        unit: of the displayed value.
        digits: decimals of the displayed value.
        secondary: left out of compact tables.
    """

    name: str
    label: str
    meaning: str
    better: Literal["lower", "higher"] | None
    scale: float = 100.0
    unit: str = "%"
    digits: int = 1
    secondary: bool = False

    def format(self, value: float | None, *, sign: bool = False) -> str:
        """A stored value as displayed, without its unit."""
        if value is None or not math.isfinite(value):
            return MISSING
        text = f"{value * self.scale:{'+' if sign else ''}.{self.digits}f}"
        if float(text) == 0:
            text = text.lstrip("+-")
        return text.replace("-", "−")

    def format_with_unit(self, value: float | None) -> str:
        """A stored value as displayed, with its unit."""
        return self.format(value) + (f"\u00a0{self.unit}" if self.unit else "")


def _count(
    name: str,
    label: str,
    meaning: str,
    better: Literal["lower", "higher"] | None = None,
    *,
    digits: int = 2,
    secondary: bool = False,
) -> Metric:
    """A metric that is a number per caption."""
    return Metric(name, label, meaning, better, 1.0, "", digits, secondary)


_WORDS = _count("words", "Words", "per caption", digits=1)
TRUTH = (
    Metric(
        "response_hallucination",
        "Response hallucination",
        "captions that name an absent object, of those that name any",
        "lower",
    ),
    Metric("mention_hallucination", "Mention hallucination", "mentions of an object that is absent", "lower"),
    Metric("recall", "Recall", "objects in the picture that are named", "higher"),
    Metric("precision", "Precision", "distinct objects named that are in the picture", "higher"),
    Metric("f1", "F1", "harmonic mean of precision and recall", "higher"),
    _count("mentions", "Mentions", "objects named, per caption", secondary=True),
    _count("distinct_mentions", "Distinct mentions", "different objects named, per caption", secondary=True),
    _count("duplicates", "Duplicates", "objects named again, per caption", "lower"),
    _count("invented", "Invented mentions", "absent objects where nothing matches, per caption", "lower"),
    _count(
        "misnamed",
        "Misnamed mentions",
        "absent objects named in place of one that the caption omits, per caption",
        "lower",
    ),
    _count("attribute_errors", "Attribute errors", "wrong colour or place of a true object, per caption", "lower"),
    _WORDS,
)
LABEL_FREE = (
    Metric("clip_score", "CLIP score", "mean cosine of a caption’s sentences, × 100", "higher", unit="", digits=2),
    Metric("low_clip_sentences", "Low CLIP sentences", "sentences below the threshold", "lower"),
    _count("sentences", "Sentences", "per caption", secondary=True),
    _WORDS,
    _count("repeated_sentences", "Repeated sentences", "per caption", "lower"),
    Metric("distinct_2", "Distinct bigrams", "different word pairs in all word pairs", None, secondary=True),
    Metric("truncated", "Truncated", "captions cut at the length limit", "lower", secondary=True),
    Metric("empty", "Empty", "captions without a word", "lower", secondary=True),
)
