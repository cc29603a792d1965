"""The result of a run in sentences and in a few tiles, from its comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jsfree.report import figures, tables
from jsfree.report.tables import Change, Comparison, Line


@dataclass(frozen=True)
class Tile:
    """A key figure before and after, with its intervals as a small figure."""

    name: str
    meaning: str
    before: str
    after: str
    change: Change
    figure: Markup


@dataclass(frozen=True)
class Summary:
    """``headline`` is one sentence, ``rest`` qualifies it, ``mode`` is the decoding mode that both speak of."""

    headline: str
    rest: list[str]
    tiles: list[Tile]
    mode: str


def summarise(truth: Sequence[Comparison], label_free: Sequence[Comparison]) -> Summary:
    """The summary of the first decoding mode; with truth where it is known."""
    if not truth and not label_free:
        return Summary("Nothing has been evaluated yet.", [], [], "")
    table = (truth or label_free)[0]
    keys = tables.TILES if truth else tables.LABEL_FREE_TILES
    tiles = [_tile(line) for key in keys if (line := table.line(key))]
    headline, rest = _with_truth(table) if truth else _without_truth(table)
    return Summary(headline, rest + _doubt(table), tiles, table.mode)


def _with_truth(table: Comparison) -> tuple[str, list[str]]:
    headline = _said(
        table,
        "response_hallucination",
        _after(table) + f" the captioner hallucinates in {{last}} of its {table.mode} captions instead of {{first}}.",
    )
    rest = [
        _said(table, "recall", "It names {last} of the objects that are there (before: {first})."),
        _said(table, "f1", "F1, which weighs that against precision, is {last} (before: {first})."),
        _said(table, "duplicates", "It names an object again {last} times a caption (before: {first})."),
    ]
    return headline or _after(table) + " no hallucination was measured.", [sentence for sentence in rest if sentence]


def _without_truth(table: Comparison) -> tuple[str, list[str]]:
    headline = _said(
        table,
        "low_clip_sentences",
        _after(table)
        + f" {{last}} of the sentences in {table.mode} captions score low with CLIP instead of {{first}}.",
    )
    rest = [
        _said(table, "clip_score", "The mean CLIP score is {last} (before: {first})."),
        _said(table, "words", "A caption has {last} words (before: {first})."),
        "What these pictures truly show is not known, so hallucination itself is not measured here.",
    ]
    return headline or _after(table) + " captions were written.", [sentence for sentence in rest if sentence]


def _after(table: Comparison) -> str:
    """``After two rounds``: the number is in the name of the last model."""
    rounds = int(table.models[-1].removeprefix("m"))
    return f"After {tables.count_word(rounds)} round{'' if rounds == 1 else 's'}"


def _said(table: Comparison, key: str, template: str) -> str:
    line = table.line(key)
    if line is None or line.first is None or line.last is None:
        return ""
    first, last = (tables.with_unit(span.value, line.metric) for span in (line.first, line.last))
    return template.format(first=first, last=last)


def _doubt(table: Comparison) -> list[str]:
    """A warning when the headline's own intervals overlap."""
    line = table.lines[0] if table.lines else None
    if line is None or line.change.verdict != "unclear":
        return []
    return ["The two intervals overlap: this run is too small to call it a change."]


def _tile(line: Line) -> Tile:
    before, after = (tables.with_unit(span.value if span else None, line.metric) for span in (line.first, line.last))
    figure = Markup("")
    if line.first and line.last:
        words = f"{line.metric.name}: {line.cells[0].interval} before, {line.cells[-1].interval} after (95 % intervals)"
        figure = figures.dumbbell(line.first, line.last, words)
    return Tile(line.metric.name, line.metric.meaning, before, after, line.change, figure)
