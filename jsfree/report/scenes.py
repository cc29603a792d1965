"""Which scenes the page shows, and how their captions are marked.

Scenes are not picked by anyone: every outcome there is takes its turn, and within an outcome the order is that
of a hash of the sample's id. A caption becomes a list of pieces, each plain or marked; the page writes them.
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
from jsfree.report.reading import Caption, PairNote, Place
from jsfree.report.tables import cosine
from jsfree.schemas import SentenceScore

SCENES = 12
SHADES = 5


@dataclass(frozen=True)
class Piece:
    """A stretch of a caption. ``kind``: plain | sentence | absent | low; ``label`` is shown beside it."""

    text: str
    kind: Literal["plain", "sentence", "absent", "low"] = "plain"
    label: str = ""
    shade: int = 0


@dataclass(frozen=True)
class Outcome:
    """A kind of scene: how it is called and which share of all scenes it is."""

    name: str
    share: float


@dataclass(frozen=True)
class Choice:
    """Which scenes are shown: (sample_id, outcome) in the order of the page, and all outcomes there are.

    ``places`` are those of the scenes shown, where they were given.
    """

    shown: list[tuple[str, str]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)


class Chooser:
    """Chooses ``count`` scenes while their outcomes come by; only those that may be shown are kept.

    The outcomes take turns, each giving its next sample by hash of id.
    """

    def __init__(self, count: int = SCENES) -> None:
        self._count = count
        self._tally: Counter[str] = Counter()
        self._waiting: dict[str, list[tuple[str, str, Place | None]]] = {}
        """Of each outcome hash, id and place of the first samples, and of some more."""

    def add(self, sample_id: str, outcome: str, place: Place | None = None) -> None:
        """Take a scene."""
        self._tally[outcome] += 1
        waiting = self._waiting.setdefault(outcome, [])
        waiting.append((_hash(sample_id), sample_id, place))
        if len(waiting) >= 16 * self._count:
            waiting.sort()
            del waiting[self._count :]

    def choice(self, order: Sequence[str]) -> Choice:
        """The scenes to show; outcomes that are not in ``order`` come last."""
        names = [name for name in order if name in self._tally] + sorted(set(self._tally) - set(order))
        taken: dict[str, int] = dict.fromkeys(names, 0)
        total = self._tally.total()
        while sum(taken.values()) < min(self._count, total):
            for name in names:
                if taken[name] < self._tally[name] and sum(taken.values()) < self._count:
                    taken[name] += 1
        first = {name: sorted(self._waiting[name])[: taken[name]] for name in names}
        shown = [(sample_id, name) for name in names for _, sample_id, _ in first[name]]
        places = [place for name in names for _, _, place in first[name] if place is not None]
        return Choice(shown, [Outcome(name, self._tally[name] / total) for name in names], places)


def choose(outcomes: Mapping[str, str], order: Sequence[str], count: int = SCENES) -> Choice:
    """Choose ``count`` of the scenes in ``outcomes``, which maps a sample's id to its outcome."""
    chooser = Chooser(count)
    for sample_id, outcome in outcomes.items():
        chooser.add(sample_id, outcome)
    return chooser.choice(order)


# A pair of these outcomes has roles; of the others, nothing was chosen.
PAIR_OUTCOMES = (
    "kept, order confirmed",
    "kept, order inverted",
    "left out, gap too small",
    "left out, gap too large",
)


def pair_outcome(note: PairNote, selected: Container[str], kept: tuple[float, float] | None, select: Select) -> str:
    """What became of a scored pair, in words; ``selected`` are the ids of those that are trained on."""
    if note.sample_id in selected:
        return PAIR_OUTCOMES[int(note.inverted and select.inverted == "swap")]
    if note.identical:
        return "left out, identical captions"
    if note.cut and not select.keep_truncated:
        return "left out, cut at the length limit"
    if note.inverted and select.inverted == "drop":
        return "left out, order inverted"
    if kept is None or kept[0] <= note.gap <= kept[1]:
        return "left out, not drawn"
    return PAIR_OUTCOMES[2] if note.gap < kept[0] else PAIR_OUTCOMES[3]


CAPTION_OUTCOMES = ("fewer {}", "none before or after", "as many {}", "more {}")


def caption_outcomes(
    before: Mapping[str, Caption], after: Mapping[str, Caption], faults: Callable[[Caption], int], noun: str
) -> dict[str, str]:
    """Outcome of every sample that has both captions, by the number of ``faults`` (called ``noun``) in each."""
    found = {}
    for sample_id in before.keys() & after.keys():
        first, last = faults(before[sample_id]), faults(after[sample_id])
        kind = 1 if first == last == 0 else (0 if last < first else 2 if last == first else 3)
        found[sample_id] = CAPTION_OUTCOMES[kind].format(noun)
    return found


def shade_edges(cosines: NDArray[np.float64]) -> list[float]:
    """The cosines that part all sentences of a run into ``SHADES`` equal classes."""
    if not len(cosines):
        return []
    return [float(edge) for edge in np.quantile(cosines, np.arange(1, SHADES) / SHADES)]


def shaded(sentences: Sequence[SentenceScore], edges: Sequence[float]) -> list[Piece]:
    """The sentences of a caption, each with its cosine and the class it falls in (1 lowest)."""
    return [
        Piece(item["text"], "sentence", cosine(item["score"]), 1 + sum(item["score"] >= edge for edge in edges))
        for item in sentences
    ]


def low_marked(sentences: Sequence[SentenceScore], low_score: float) -> list[Piece]:
    """The sentences of a caption, those below ``low_score`` marked."""
    pieces = []
    for item in sentences:
        if item["score"] < low_score:
            pieces.append(Piece(item["text"], "low", f"low CLIP {cosine(item['score'])}"))
        else:
            pieces.append(Piece(item["text"] + " "))
    return pieces


def low_count(caption: Caption, low_score: float) -> int:
    """How many sentences of a caption score below ``low_score``."""
    return sum(item["score"] < low_score for item in caption.row["sentences"])


def absent_spans(caption: Caption) -> list[tuple[int, int]]:
    """Where a MiniWorld caption names an object that is not in its scene: (start, end) of the noun."""
    from jsfree.evaluation import miniworld as metrics
    from jsfree.miniworld import world

    scene = world.scene_from_id(caption.row["sample_id"].rpartition("@")[0])
    return [(found.start, found.end) for found in metrics.hallucinated_mentions(scene, caption.row["text"])]


def absent_marked(caption: Caption) -> list[Piece]:
    """A MiniWorld caption with the words for absent objects marked."""
    text, at, pieces = caption.row["text"], 0, []
    for start, end in absent_spans(caption):
        pieces += [Piece(text[at:start]), Piece(text[start:end], "absent", "absent")]
        at = end
    return [piece for piece in (*pieces, Piece(text[at:])) if piece.text]


def _hash(sample_id: str) -> str:
    return hashlib.sha256(sample_id.encode()).hexdigest()
