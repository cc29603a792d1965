"""Selection of the scenes on the page, and the marks in their captions.

Scenes are not picked by hand: outcomes take turns, and within an outcome the order is that of a hash of the sample's
id. A caption is split into pieces, each plain or marked, which the template renders.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jsfree.config import Select
from jsfree.report.reading import Caption, PairSummary, Position
from jsfree.report.tables import cosine
from jsfree.schemas import SentenceScore

SCENES = 12
SHADES = 5


@dataclass(frozen=True)
class Piece:
    """A part of a caption; ``label`` is shown next to it, ``shade`` is the class of its score (1 lowest)."""

    text: str
    kind: Literal["plain", "sentence", "absent", "low"] = "plain"
    label: str = ""
    shade: int = 0


@dataclass(frozen=True)
class Outcome:
    """A kind of scene, and its share of all scenes."""

    name: str
    share: float


@dataclass(frozen=True)
class Choice:
    """The scenes shown, (sample_id, outcome) in the order of the page, their positions if known, and all outcomes."""

    shown: list[tuple[str, str]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)


class SceneChooser:
    """Chooses ``count`` scenes from a stream of any length in bounded memory.

    Outcomes take turns, each with its next sample in the order of hashed ids.
    """

    def __init__(self, count: int = SCENES) -> None:
        self._count = count
        self._tally: Counter[str] = Counter()
        self._candidates: dict[str, list[tuple[str, str, Position | None]]] = {}
        """By outcome, candidates as (hash, id, position)."""

    def add(self, sample_id: str, outcome: str, position: Position | None = None) -> None:
        """Add the next scene of the stream."""
        self._tally[outcome] += 1
        candidates = self._candidates.setdefault(outcome, [])
        candidates.append((_hash(sample_id), sample_id, position))
        if len(candidates) >= 16 * self._count:
            candidates.sort()
            del candidates[self._count :]

    def choice(self, order: Sequence[str]) -> Choice:
        """The scenes to show; outcomes not in ``order`` come last."""
        names = [name for name in order if name in self._tally] + sorted(set(self._tally) - set(order))
        taken: dict[str, int] = dict.fromkeys(names, 0)
        total = self._tally.total()
        while sum(taken.values()) < min(self._count, total):
            for name in names:
                if taken[name] < self._tally[name] and sum(taken.values()) < self._count:
                    taken[name] += 1
        first = {name: sorted(self._candidates[name])[: taken[name]] for name in names}
        shown = [(sample_id, name) for name in names for _, sample_id, _ in first[name]]
        positions = [position for name in names for _, _, position in first[name] if position is not None]
        return Choice(shown, [Outcome(name, self._tally[name] / total) for name in names], positions)


def choose(outcomes: Mapping[str, str], order: Sequence[str], count: int = SCENES) -> Choice:
    """Choose ``count`` of the scenes in ``outcomes``, which maps sample ids to outcomes."""
    chooser = SceneChooser(count)
    for sample_id, outcome in outcomes.items():
        chooser.add(sample_id, outcome)
    return chooser.choice(order)


# Pairs of these outcomes have a chosen caption; all others have none.
PAIR_OUTCOMES = (
    "kept, order confirmed",
    "kept, order inverted",
    "left out, gap too small",
    "left out, gap too large",
)


# Outcomes of strategy ``coverage``, which forms pairs of other captions: its pairs have no roles here.
COVERAGE_OUTCOMES = (
    "image trained on, the order of the ratios is confirmed",
    "image trained on, the order of the ratios is inverted",
    "image not trained on, the order of the ratios is confirmed",
    "image not trained on, the order of the ratios is inverted",
)


def pair_outcome(pair: PairSummary, selected: Container[str], kept: tuple[float, float] | None, select: Select) -> str:
    """The outcome of a scored pair; ``selected`` are the ids of the pairs trained on."""
    if select.strategy == "coverage":
        return COVERAGE_OUTCOMES[2 * (pair.sample_id not in selected) + pair.inverted]
    if pair.sample_id in selected:
        return PAIR_OUTCOMES[int(pair.inverted and select.inverted in ("swap", "random"))]
    if pair.identical:
        return "left out, identical captions"
    if pair.truncated and not select.keep_truncated:
        return "left out, cut at the length limit"
    if pair.inverted and select.inverted == "drop":
        return "left out, order inverted"
    if pair.disagreed and select.inverted != "keep":
        return "left out, the scorers disagree"
    if kept is None or kept[0] <= pair.gap <= kept[1]:
        return "left out, not drawn"
    return PAIR_OUTCOMES[2] if pair.gap < kept[0] else PAIR_OUTCOMES[3]


CAPTION_OUTCOMES = ("fewer {}", "none before or after", "as many {}", "more {}")


def caption_outcomes(
    before: Mapping[str, Caption], after: Mapping[str, Caption], faults: Callable[[Caption], int], noun: str
) -> dict[str, str]:
    """The outcome of every sample that has both captions, by the number of ``faults`` (called ``noun``) in each."""
    outcomes = {}
    for sample_id in before.keys() & after.keys():
        first, last = faults(before[sample_id]), faults(after[sample_id])
        kind = 1 if first == last == 0 else (0 if last < first else 2 if last == first else 3)
        outcomes[sample_id] = CAPTION_OUTCOMES[kind].format(noun)
    return outcomes


def shade_edges(cosines: NDArray[np.float64]) -> list[float]:
    """The cosines that divide all sentences of a run into ``SHADES`` classes of equal size."""
    if not len(cosines):
        return []
    return [float(edge) for edge in np.quantile(cosines, np.arange(1, SHADES) / SHADES)]


def shaded(sentences: Sequence[SentenceScore], edges: Sequence[float]) -> list[Piece]:
    """The sentences of a caption, each with its cosine and its class (1 lowest)."""
    return [
        Piece(item["text"], "sentence", cosine(item["score"]), 1 + sum(item["score"] >= edge for edge in edges))
        for item in sentences
    ]


def low_marked(sentences: Sequence[SentenceScore], low_score: float) -> list[Piece]:
    """The sentences of a caption, with those below ``low_score`` marked."""
    pieces = []
    for item in sentences:
        if item["score"] < low_score:
            pieces.append(Piece(item["text"], "low", f"low CLIP {cosine(item['score'])}"))
        else:
            pieces.append(Piece(item["text"] + " "))
    return pieces


def low_count(caption: Caption, low_score: float) -> int:
    """The number of sentences of a caption that score below ``low_score``."""
    return sum(item["score"] < low_score for item in caption.row["sentences"])


def absent_spans(caption: Caption) -> list[tuple[int, int]]:
    """The (start, end) of each noun in a MiniWorld caption whose object is not in the scene."""
    return _absent_spans(caption.row["sample_id"], caption.row["text"])


def _absent_spans(sample_id: str, text: str) -> list[tuple[int, int]]:
    from jsfree.evaluation import miniworld as metrics
    from jsfree.miniworld import world

    scene = world.scene_from_id(sample_id.rpartition("@")[0])
    return [(mention.start, mention.end) for mention in metrics.hallucinated_mentions(scene, text)]


def absent_marked(caption: Caption) -> list[Piece]:
    """A MiniWorld caption with the nouns of absent objects marked."""
    return absent_marked_text(caption.row["sample_id"], caption.row["text"])


def absent_marked_text(sample_id: str, text: str) -> list[Piece]:
    """A text about the scene of a sample with the nouns of absent objects marked."""
    at, pieces = 0, []
    for start, end in _absent_spans(sample_id, text):
        pieces += [Piece(text[at:start]), Piece(text[start:end], "absent", "absent")]
        at = end
    return [piece for piece in (*pieces, Piece(text[at:])) if piece.text]


def _hash(sample_id: str) -> str:
    return hashlib.sha256(sample_id.encode()).hexdigest()
