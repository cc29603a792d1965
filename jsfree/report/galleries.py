"""The two galleries of the page: scored pairs of the last round, and evaluation captions before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jsfree import schemas
from jsfree.report import pictures, reading, scenes, tables
from jsfree.report.reading import Caption, Scored
from jsfree.report.scenes import Choice, Piece, SceneChooser
from jsfree.run.run import Run
from jsfree.schemas import CaptionScores, ScoredCaption
from jsfree.stages.pair_selection import is_high_chosen

MODELS = 4
"""Models after m0 whose captions of a scene are shown."""


@dataclass(frozen=True)
class Side:
    """One caption of a scene: title, notes, and marked text; ``chosen`` is None if the scene has no chosen caption."""

    title: str
    notes: list[str]
    pieces: list[Piece]
    chosen: bool | None = None


@dataclass(frozen=True)
class SceneView:
    """A scene on the page; ``picture`` is a ``data:`` URI, or None if the image cannot be read."""

    sample_id: str
    outcome: str
    picture: str | None
    sides: list[Side]


@dataclass(frozen=True)
class Gallery:
    """Scenes of a round, and all outcomes with their shares; ``edges`` separate the shades of sentences."""

    round: int
    views: list[SceneView]
    choice: Choice
    total: int
    edges: list[str]


def pair_gallery(run: Run, number: int, scored: Scored, kept: tuple[float, float] | None) -> Gallery:
    """A gallery of the scored pairs of round ``number``; ``kept`` is the range of gaps that it trained on."""
    folder, chooser = run.stage(number, "scored"), SceneChooser()
    selected = reading.selected_ids(run.stage(number, "selected"))
    for pair in reading.pair_summaries(folder, scored.spread_S):
        chooser.add(pair.sample_id, scenes.pair_outcome(pair, selected, kept, run.config.select), pair.position)
    choice = chooser.choice([*scenes.PAIR_OUTCOMES, *scenes.COVERAGE_OUTCOMES])
    schema = schemas.scored_schema(0, len(scored.spread_S))
    rows: list[Any] = reading.rows_at(folder, choice.positions, schema)
    edges = scenes.shade_edges(scored.cosines)
    views = [
        SceneView(
            sample_id,
            outcome,
            pictures.data_uri(row["image"], run.config.source),
            _pair_sides(row, edges, run, outcome),
        )
        for (sample_id, outcome), row in zip(choice.shown, rows, strict=True)
    ]
    return Gallery(number, views, choice, len(scored), [tables.cosine(edge) for edge in edges])


def caption_gallery(run: Run, good: Sequence[int], truth: bool, low_score: float | None) -> Gallery | None:
    """A gallery of captions of m0 and of the models of evaluated rounds, in the first mode that m0 and the last have.

    Args:
        good: the rounds; the model of the last is the result. Of many only the last are shown.
        truth: whether the images are scenes with known objects.
        low_score: the threshold of a low sentence score.
    """
    last_round = good[-1]
    for mode in run.config.evaluate.modes:
        before = reading.captions(run.stage(1, f"captions_scored/m0-{mode}"))
        after = reading.captions(run.stage(last_round, f"captions_scored/m{last_round}-{mode}"))
        if before.keys() & after.keys():
            break
    else:
        return None
    mark, faults, noun = _marking(truth, low_score)
    outcomes = scenes.caption_outcomes(before, after, faults, noun)
    choice = scenes.choose(outcomes, [name.format(noun) for name in scenes.CAPTION_OUTCOMES])
    ids = [sample_id for sample_id, _ in choice.shown]
    first = run.stage(1, f"captions_scored/m0-{mode}")
    images = reading.images_at(first, [before[sample_id].position for sample_id in ids])
    models = {f"Before (m0, {mode})": before}
    for number in good[-MODELS:-1]:
        models[f"m{number}, {mode}"] = reading.captions(run.stage(number, f"captions_scored/m{number}-{mode}"), ids)
    models[f"After (m{last_round}, {mode})"] = after
    views = []
    for (sample_id, outcome), image in zip(choice.shown, images, strict=True):
        captions = {title: found[sample_id] for title, found in models.items() if sample_id in found}
        sides = [Side(title, _caption_notes(c, faults, noun), mark(c)) for title, c in captions.items()]
        views.append(SceneView(sample_id, outcome, pictures.data_uri(image, run.config.evaluate.source), sides))
    return Gallery(last_round, views, choice, len(outcomes), [])


def _pair_sides(row: dict[str, Any], edges: Sequence[float], run: Run, outcome: str) -> list[Side]:
    """Both captions of a pair; a chosen one follows from the scores and the rule for inverted pairs."""
    has_roles = outcome in scenes.PAIR_OUTCOMES
    swap = is_high_chosen(row["sample_id"], row["inverted"], run.config.select, run.config.seed)
    sides = []
    for role, caption, chosen in (("low", row["low"], not swap), ("high", row["high"], swap)):
        sides.append(
            Side(
                _title(role, caption["ratio"], run.config.select.strategy),
                _pair_notes(caption, row.get(f"second_{role}"), run.config.score.score_name),
                scenes.shaded(caption["sentences"], edges),
                chosen if has_roles else None,
            )
        )
    return sides


def _title(role: str, ratio: float | None, strategy: str) -> str:
    """The title of a pair's caption; a caption without a ratio was imported."""
    if ratio is None:
        return "Imported as chosen" if role == "low" else "Imported as rejected"
    if strategy == "coverage":
        return f"{'Lower' if role == 'low' else 'Higher'} ratio, h = {ratio:.2f}"
    return f"{'Provisional winner' if role == 'low' else 'Provisional loser'}, h = {ratio:.2f}"


def _pair_notes(caption: ScoredCaption, second: CaptionScores | None, score: str) -> list[str]:
    cut = ["cut at the length limit"] if caption["finish"] == "length" else []
    other = [] if second is None else [f"second scorer {tables.cosine(second['score'])}"]
    return [f"mean {score} {tables.cosine(caption['score'])}", *other, *cut]


def _marking(
    truth: bool, low_score: float | None
) -> tuple[Callable[[Caption], list[Piece]], Callable[[Caption], int], str]:
    """Functions that mark the faults of a caption and count them, and the name of a fault."""
    if truth:
        return scenes.absent_marked, lambda caption: len(scenes.absent_spans(caption)), "absent objects"
    threshold = float("-inf") if low_score is None else low_score
    return (
        lambda caption: scenes.low_marked(caption.row["sentences"], threshold),
        lambda caption: scenes.low_count(caption, threshold),
        "low CLIP sentences",
    )


def _caption_notes(caption: Caption, faults: Callable[[Caption], int], noun: str) -> list[str]:
    count = faults(caption)
    cut = ["cut at the length limit"] if caption.row["finish"] == "length" else []
    return [f"{tables.count_word(count)} {noun if count != 1 else noun.removesuffix('s')}", *cut]
