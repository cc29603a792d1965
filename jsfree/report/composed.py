"""The gallery of composed captions (``select.strategy: coverage``): what became of every sentence, and the pair formed.

A kept sentence is shown in the wording that was chosen for it, which may be that of another candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jsfree import schemas
from jsfree.report import coverage, pictures, reading, scenes, tables
from jsfree.report.scenes import Choice, Piece, SceneChooser
from jsfree.run.run import Run
from jsfree.schemas import ComposedPair, Edit, Role

SCENES = 6
SIGNS = {"kept": "✓", "removed": "−", "repeated": "↺", "added": "+"}
"""Sign of each action, in the order of the legend."""
MEANINGS = {
    "kept": "kept",
    "removed": "removed, judged false",
    "repeated": "removed as a repetition",
    "added": "added from another candidate",
}
OUTCOMES = {
    "none": "rejected: another candidate",
    "omitted": "rejected: the chosen caption without a sentence",
    "repeated": "rejected: the chosen caption with a repeated sentence",
}
"""Outcome of a pair by how its rejected caption was made, in the order of the page."""
Mark = Callable[[str], list[Piece]]


@dataclass(frozen=True)
class MarkedSentence:
    """A sentence and what was done to it; ``log_odds`` and ``origin``, the candidate of the wording, are formatted."""

    action: str
    sign: str
    log_odds: str
    origin: str
    pieces: list[Piece]


@dataclass(frozen=True)
class ComposedView:
    """A composed caption on the page.

    ``base`` is the candidate that it is based on; ``rejected`` is empty if ``edit`` says how the rejected caption
    differs from the chosen one.
    """

    sample_id: str
    outcome: str
    picture: str | None
    base: str
    sentences: list[MarkedSentence]
    chosen_from: str
    chosen: list[Piece]
    rejected_from: str
    rejected: list[Piece]
    edit: str
    gap: str


@dataclass(frozen=True)
class ActionShare:
    """The number of sentences with an action in all composed captions of a round, and their share."""

    action: str
    sign: str
    meaning: str
    sentences: str
    share: float


@dataclass(frozen=True)
class ComposedGallery:
    """Composed captions of a round, and what was done to the sentences of all of them."""

    round: int
    views: list[ComposedView]
    choice: Choice
    total: int
    actions: list[ActionShare]
    truth: bool


def composed_gallery(run: Run, number: int) -> ComposedGallery | None:
    """A gallery of the composed captions of round ``number``; None if it has none."""
    if run.config.select.strategy != "coverage":
        return None
    folder, chooser, total = run.stage(number, "selected"), SceneChooser(SCENES), 0
    for pair in reading.composed_summaries(folder):
        chooser.add(pair.sample_id, OUTCOMES.get(pair.edit, pair.edit), pair.position)
        total += 1
    if not total:
        return None
    choice = chooser.choice(list(OUTCOMES.values()))
    rows: list[ComposedPair] = reading.rows_at(folder, choice.positions, schemas.COMPOSED)
    views = [_view(row, outcome, run) for (_, outcome), row in zip(choice.shown, rows, strict=True)]
    counts = reading.edit_counts(folder)
    actions = [
        ActionShare(name, sign, MEANINGS[name], tables.whole(counts[name]), counts[name] / max(1, counts.total()))
        for name, sign in SIGNS.items()
    ]
    return ComposedGallery(number, views, choice, total, actions, _has_truth(run))


def _view(row: ComposedPair, outcome: str, run: Run) -> ComposedView:
    def mark(text: str) -> list[Piece]:
        return scenes.absent_marked_text(row["sample_id"], text) if _has_truth(run) else [Piece(text)]

    provenance, ratios = row["provenance"], {"low": row["low"]["ratio"], "high": row["high"]["ratio"]}
    edit = provenance["edit"]
    return ComposedView(
        row["sample_id"],
        outcome,
        pictures.data_uri(row["image"], run.config.source),
        _candidate(row["target"]["role"], ratios),
        [_marked(each, mark) for each in row["target"]["edits"]],
        _candidate(provenance["chosen"], ratios),
        mark(row["chosen"]["text"]),
        _candidate(provenance["rejected"], ratios),
        mark(row["rejected"]["text"]) if edit == "none" else [],
        "" if edit == "none" else f"the chosen caption with the sentence “{provenance['sentence']}” {edit}",
        coverage.gap(row["gap"]),
    )


def _marked(edit: Edit, mark: Mark) -> MarkedSentence:
    return MarkedSentence(
        edit["action"],
        SIGNS.get(edit["action"], ""),
        coverage.log_odds(edit["logit"]),
        _short_name(edit["role"]),
        mark(edit["text"]),
    )


def _short_name(role: Role) -> str:
    """``low``, ``high`` or ``sample 1``."""
    return role.replace("-", " ")


def _candidate(role: Role, ratios: dict[str, float | None]) -> str:
    """The name of a candidate with its hallucination ratio, where it is not 0 by definition."""
    ratio = ratios.get(role)
    return _short_name(role) + (f" (h = {ratio:.2f})" if ratio is not None else "")


def _has_truth(run: Run) -> bool:
    """Whether the contents of the training images are known."""
    return run.config.source.kind == "miniworld"
