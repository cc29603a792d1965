"""What each round was made of: gaps, scores and lengths of its pairs, and the pairs it trained on, by round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from jsfree import schemas
from jsfree.evaluation.statistics import wilson
from jsfree.report import spreads
from jsfree.report.figures import Span
from jsfree.report.reading import EvenSample, Scored
from jsfree.report.spreads import SpreadLine
from jsfree.run.run import Run
from jsfree.run.streaming import scan
from jsfree.stages.sentences import count_repeated

QUARTILES = (0.5, 0.25, 0.75)


def drift_panels(run: Run, scored: Mapping[int, Scored]) -> list[Markup]:
    """One panel per figure over the rounds in ``scored``; none before the second round."""
    if len(scored) < 2:
        return []
    labels = [str(number) for number in scored]
    facts = [_facts(run, number) for number in scored]
    lengths = [_Lengths(run, number) for number in scored]
    is_joint = run.config.clip.second is not None
    scale, unit = (1.0, "spreads") if is_joint else (100.0, "× 100")

    def panel(title: str, spans: Sequence[Span | None]) -> Markup:
        return spreads.lines_panel(title, "round", labels, [SpreadLine("", spans)])

    def of_pairs(of: Callable[[Scored], NDArray[np.float64]], factor: float) -> list[Span | None]:
        return [_middle(factor * of(each)) for each in scored.values()]

    return [
        panel(f"Gap of mean sentence scores, {unit}", of_pairs(lambda each: each.gaps, scale)),
        panel("Sentence scores, × 100", of_pairs(lambda each: each.cosines, 100.0)),
        panel("Inverted pairs, %", [_share(int(each.inverted.sum()), len(each)) for each in scored.values()]),
        panel("Identical captions, %", [_share(int(each.identical.sum()), len(each)) for each in scored.values()]),
        _kept_panel(run, labels, facts),
        spreads.lines_panel(
            "Words of a caption: low ratio ●, high ratio ■",
            "round",
            labels,
            [SpreadLine(role, [_middle(each.words[role].values) for each in lengths]) for role in _Lengths.ROLES],
        ),
        spreads.lines_panel(
            "Captions that repeat a sentence, %: low ●, high ■",
            "round",
            labels,
            [
                SpreadLine(role, [_share(each.repeating[role], each.pairs) for each in lengths])
                for role in _Lengths.ROLES
            ],
        ),
    ]


class _Lengths:
    """Lengths and repetitions of both captions of all pairs of a round."""

    ROLES = ("low", "high")

    def __init__(self, run: Run, number: int) -> None:
        self.pairs = 0
        self.words = {role: EvenSample() for role in self.ROLES}
        self.repeating = dict.fromkeys(self.ROLES, 0)
        columns = [f"{role}.{field}" for role in self.ROLES for field in ("text", "sentences")]
        for table in scan(run.stage(number, "scored"), schemas.scored_schema(0), columns):
            self.pairs += len(table)
            for role in self.ROLES:
                captions = table[role].to_pylist()
                self.words[role].add(np.array([len(each["text"].split()) for each in captions], np.float64))
                texts = [[sentence["text"] for sentence in each["sentences"]] for each in captions]
                self.repeating[role] += sum(count_repeated(sentences) > 0 for sentences in texts)


def _kept_panel(run: Run, labels: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> Markup:
    """The mean gap of the pairs trained on, between the lowest and the highest of them."""
    coverage = run.config.select.strategy == "coverage"
    scale = 1.0 if coverage or run.config.clip.second is not None else 100.0
    unit = "coverage" if coverage else "spreads" if run.config.clip.second is not None else "× 100"
    spans = [_kept(run, each.get("splits", []), scale) for each in facts]
    return spreads.lines_panel(f"Gap of pairs trained on, {unit}", "round", labels, [SpreadLine("", spans)])


def _kept(run: Run, splits: Sequence[Mapping[str, Any]], scale: float) -> Span | None:
    select = run.config.select
    kept = [s for s in splits if s.get("kept", select.first <= s["split"] <= select.last) and s["pairs"]]
    pairs = sum(split["pairs"] for split in kept)
    if not pairs:
        return None
    mean = sum(split["pairs"] * split["mean_gap"] for split in kept) / pairs
    low, high = min(split["low_gap"] for split in kept), max(split["high_gap"] for split in kept)
    return Span(scale * mean, scale * low, scale * high)


def _facts(run: Run, number: int) -> Mapping[str, Any]:
    manifest = run.manifest(number, "selected")
    return manifest.facts if manifest else {}


def _middle(values: NDArray[np.float64]) -> Span | None:
    """The median with the quartiles."""
    return Span(*map(float, np.quantile(values, QUARTILES))) if len(values) else None


def _share(count: int, total: int) -> Span | None:
    """A share in %, with Wilson's interval."""
    if not total:
        return None
    value, low, high = wilson(count, total)
    return Span(100 * value, 100 * low, 100 * high)
