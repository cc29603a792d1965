"""The result of a run in a few sentences and tiles, from its comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jsfree.report import figures, tables
from jsfree.report.tables import Change, Comparison, Line


@dataclass(frozen=True)
class Tile:
    """A key metric before and after, with its intervals as a small figure."""

    name: str
    meaning: str
    before: str
    after: str
    change: Change
    figure: Markup


@dataclass(frozen=True)
class Summary:
    """A headline, the sentences that qualify it, tiles, and the decoding mode that all of them are about."""

    headline: str
    rest: list[str]
    tiles: list[Tile]
    mode: str


def summarise(truth: Sequence[Comparison], label_free: Sequence[Comparison]) -> Summary:
    """Summarise the first decoding mode, by the metrics with truth if there are any."""
    if not truth and not label_free:
        return Summary("Nothing has been evaluated yet.", [], [], "")
    table = (truth or label_free)[0]
    names = tables.TILES if truth else tables.LABEL_FREE_TILES
    tiles = [_tile(line) for name in names if (line := table.line(name))]
    headline, rest = _sentences_with_truth(table) if truth else _sentences_without_truth(table)
    return Summary(headline, rest + _overlap_warning(table), tiles, table.mode)


def _sentences_with_truth(table: Comparison) -> tuple[str, list[str]]:
    headline = _sentence(
        table,
        "response_hallucination",
        _after(table) + f" the captioner hallucinates in {{last}} of its {table.mode} captions instead of {{first}}.",
    )
    rest = [
        _sentence(table, "recall", "It names {last} of the objects that are there (before: {first})."),
        _sentence(table, "f1", "F1, which weighs that against precision, is {last} (before: {first})."),
        _sentence(table, "duplicates", "It names an object again {last} times a caption (before: {first})."),
    ]
    return headline or _after(table) + " no hallucination was measured.", [sentence for sentence in rest if sentence]


def _sentences_without_truth(table: Comparison) -> tuple[str, list[str]]:
    headline = _sentence(
        table,
        "low_clip_sentences",
        _after(table)
        + f" {{last}} of the sentences in {table.mode} captions score low with CLIP instead of {{first}}.",
    )
    rest = [
        _sentence(table, "clip_score", "The mean CLIP score is {last} (before: {first})."),
        _sentence(table, "words", "A caption has {last} words (before: {first})."),
        "The contents of these pictures are not known, so hallucination itself is not measured here.",
    ]
    return headline or _after(table) + " captions were written.", [sentence for sentence in rest if sentence]


def _after(table: Comparison) -> str:
    """``After two rounds``; the number is part of the result's name."""
    rounds = int(table.result.removeprefix("m"))
    return f"After {tables.count_word(rounds)} round{'' if rounds == 1 else 's'}"


def _sentence(table: Comparison, metric: str, template: str) -> str:
    line = table.line(metric)
    if line is None or line.first is None or line.last is None:
        return ""
    first, last = (line.metric.format_with_unit(span.value) for span in (line.first, line.last))
    return template.format(first=first, last=last)


def _overlap_warning(table: Comparison) -> list[str]:
    """A warning if the intervals of the headline's metric overlap."""
    line = table.lines[0] if table.lines else None
    if line is None or line.change.verdict != "unclear":
        return []
    return ["The two intervals overlap: this run is too small to call it a change."]


def _tile(line: Line) -> Tile:
    before, after = (line.metric.format_with_unit(span.value if span else None) for span in (line.first, line.last))
    figure = Markup("")
    if line.first and line.last:
        old, new = line.cells[0].interval, line.cells[line.result].interval
        words = f"{line.metric.label}: {old} before, {new} after (95 % intervals)"
        figure = figures.dumbbell(line.first, line.last, words)
    return Tile(line.metric.label, line.metric.meaning, before, after, line.change, figure)
