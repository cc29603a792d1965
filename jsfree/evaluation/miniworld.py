"""Metrics of MiniWorld captions against the exact contents of their scenes.

A mention is a noun of MiniWorld's vocabulary or a synonym of one (``wording.SYNONYMS``) anywhere in the text, in any
case, singular or plural, with the colour before it and the position around it. Sentences that continue with "it" about
the only object of the previous sentence add its colour and position. The rest of the text, relations among it, is
ignored, so that free, truncated or garbled captions can be counted too.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import cache

import numpy as np

from jsfree.errors import ConfigError
from jsfree.evaluation.metrics import TRUTH
from jsfree.evaluation.statistics import FloatArray, bootstrap, divide
from jsfree.miniworld.vocabulary import COLOURS, IRREGULAR_PLURALS, OBJECTS
from jsfree.miniworld.wording import POSITION_WORDINGS, SYNONYM_PLURALS, SYNONYMS
from jsfree.miniworld.world import Scene, SceneObject, fair_positions


@dataclass(frozen=True)
class Mention:
    """One object named in a text by the word ``text[start:end]``; colour and position if given.

    ``noun`` is a name of ``vocabulary.OBJECTS`` and ``position`` one of ``vocabulary.POSITIONS``, whatever the wording.
    """

    noun: str
    start: int
    end: int
    colour: str | None = None
    position: str | None = None


@dataclass(frozen=True)
class CaptionCounts:
    """Counts of one caption against one scene."""

    mentions: int
    hallucinated: int
    distinct: int
    distinct_correct: int
    truth_objects: int
    invented: int
    """Mentions of absent objects with a colour and position that no object of the scene has."""
    misnamed: int
    """Mentions of absent objects with the colour and position of an object that the caption does not name."""
    attribute_errors: int
    words: int

    @property
    def duplicates(self) -> int:
        """Mentions beyond the first of each object."""
        return self.mentions - self.distinct


def mentions(text: str) -> list[Mention]:
    """Every object that ``text`` names, in order of appearance."""
    nouns = list(_noun_pattern().finditer(text))
    mentioned = []
    for number, match in enumerate(nouns):
        start = max(_sentence_start(text, match.start()), nouns[number - 1].end() if number else 0)
        after = nouns[number + 1].start() if number + 1 < len(nouns) else len(text)
        end = min(_sentence_end(text, match.end()), after)
        colours = _colour_pattern().findall(text, start, match.start())
        positions = _position_pattern().findall(text, match.end(), end)
        # "On the left there is a cup": the position precedes the noun, unless it belongs to the previous noun.
        if not positions and start == _sentence_start(text, match.start()):
            positions = _position_pattern().findall(text, start, match.start())
        mentioned.append(
            Mention(
                _objects_by_word()[" ".join(match.group().lower().split())],
                match.start(),
                match.end(),
                colours[-1].lower() if colours else None,
                _position(positions[0]) if positions else None,
            )
        )
    return _with_continuations(text, mentioned)


def _with_continuations(text: str, mentioned: list[Mention]) -> list[Mention]:
    """Add the colours and positions of sentences such as "It is red." after a sentence about one object."""
    starts = [_sentence_start(text, mention.start) for mention in mentioned]
    completed = []
    for mention, start in zip(mentioned, starts, strict=True):
        at = _sentence_end(text, mention.end) + 1
        while starts.count(start) == 1 and at not in starts and _IT.match(text, at):
            end = _sentence_end(text, at)
            colour, position = _colour_pattern().search(text, at, end), _position_pattern().search(text, at, end)
            mention = replace(
                mention,
                colour=mention.colour or (colour and colour.group().lower()),
                position=mention.position or (position and _position(position.group())),
            )
            at = end + 1
        completed.append(mention)
    return completed


def hallucinated_mentions(scene: Scene, text: str) -> list[Mention]:
    """The mentions of objects that are not in ``scene``."""
    present = {item.name for item in scene.objects}
    return [mention for mention in mentions(text) if mention.noun not in present]


def absent_words(scene: Scene) -> list[str]:
    """Every word for an object that is not in ``scene``, singular and plural, in lower case."""
    present = {item.name for item in scene.objects}
    return sorted(word for word, name in _objects_by_word().items() if name not in present)


def count_caption(scene: Scene, text: str) -> CaptionCounts:
    """Count the mentions and errors of a caption of ``scene``."""
    present = {item.name: item for item in scene.objects}
    named = mentions(text)
    distinct = {mention.noun for mention in named}
    correct = [mention for mention in named if mention.noun in present]
    wrong = 0
    for mention in correct:
        item = present[mention.noun]
        wrong_colour = mention.colour not in (None, item.colour)
        wrong_position = mention.position is not None and mention.position not in fair_positions(item.box)
        wrong += wrong_colour or wrong_position
    absent = [mention for mention in named if mention.noun not in present]
    matched = [{item.name for item in scene.objects if _matches(mention, item)} for mention in absent]
    return CaptionCounts(
        mentions=len(named),
        hallucinated=len(named) - len(correct),
        distinct=len(distinct),
        distinct_correct=len(distinct & present.keys()),
        truth_objects=len(present),
        invented=sum(not names for names in matched),
        misnamed=sum(bool(names - distinct) for names in matched),
        attribute_errors=wrong,
        words=len(text.split()),
    )


def _matches(mention: Mention, item: SceneObject) -> bool:
    """Whether an object has the colour and the position that a mention states; a mention must state a position."""
    return mention.colour in (None, item.colour) and mention.position in fair_positions(item.box)


def summarise(counts: Sequence[CaptionCounts], resamples: int = 1000, seed: int = 0) -> dict[str, dict[str, float]]:
    """The metrics of ``metrics.json``, each ``{"value", "low", "high"}`` (95 %, bootstrap over scenes).

    Rates are fractions of 1, pooled over captions; counts are means per caption. An undefined metric
    (a rate of no mentions) is 0 with the interval [0, 0].

    Raises:
        ConfigError: there are no counts.
    """
    if not counts:
        raise ConfigError("there are no captions to summarise", "count at least one")
    columns = np.array([count_columns(count) for count in counts], np.float64)
    return {metric.name: bootstrap(columns, STATISTICS[metric.name], resamples, seed).as_json() for metric in TRUTH}


_COLUMNS = ("one", "with_mention", "with_absent", *(field.name for field in fields(CaptionCounts)))
"""Columns of the bootstrap, in the order of ``count_columns``."""


def count_columns(count: CaptionCounts) -> tuple[int, ...]:
    """The numbers of a caption whose sums over captions the ``STATISTICS`` are computed from."""
    return (1, count.mentions > 0, count.hallucinated > 0, *astuple(count))


def _ratio(numerator: str, denominator: str = "one") -> Callable[[FloatArray], FloatArray]:
    top, bottom = _COLUMNS.index(numerator), _COLUMNS.index(denominator)
    return lambda sums_RK: divide(sums_RK[:, top], sums_RK[:, bottom])


def _f1(sums_RK: FloatArray) -> FloatArray:
    """Harmonic mean of pooled precision and recall."""
    column = {name: sums_RK[:, number] for number, name in enumerate(_COLUMNS)}
    return divide(2 * column["distinct_correct"], column["distinct"] + column["truth_objects"])


STATISTICS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "response_hallucination": _ratio("with_absent", "with_mention"),
    "mention_hallucination": _ratio("hallucinated", "mentions"),
    "recall": _ratio("distinct_correct", "truth_objects"),
    "precision": _ratio("distinct_correct", "distinct"),
    "f1": _f1,
    "mentions": _ratio("mentions"),
    "distinct_mentions": _ratio("distinct"),
    "duplicates": lambda sums_RK: _ratio("mentions")(sums_RK) - _ratio("distinct")(sums_RK),
    "invented": _ratio("invented"),
    "misnamed": _ratio("misnamed"),
    "attribute_errors": _ratio("attribute_errors"),
    "words": _ratio("words"),
}
"""Each metric of ``TRUTH`` as a function of sums of ``count_columns``, (R, K) -> (R,)."""


_IT = re.compile(r"\s*(?:it|its)\b", re.IGNORECASE)


def _plural(noun: str) -> str:
    return (IRREGULAR_PLURALS | SYNONYM_PLURALS).get(noun, noun + "s")


@cache
def _objects_by_word() -> dict[str, str]:
    """Every noun, singular and plural, in lower case -> its object."""
    nouns = {noun: name for name in OBJECTS for noun in (name, *SYNONYMS.get(name, ()))}
    return {form.lower(): name for noun, name in nouns.items() for form in (noun, _plural(noun))}


@cache
def _positions_by_wording() -> dict[str, str]:
    return {wording: position for position, wordings in POSITION_WORDINGS.items() for wording in wordings}


def _position(wording: str) -> str:
    return _positions_by_wording()[" ".join(wording.lower().split())]


@cache
def _noun_pattern() -> re.Pattern[str]:
    return _any_of(_objects_by_word())


@cache
def _colour_pattern() -> re.Pattern[str]:
    return _any_of(COLOURS)


@cache
def _position_pattern() -> re.Pattern[str]:
    return _any_of(_positions_by_wording())


def _any_of(phrases: Iterable[str]) -> re.Pattern[str]:
    # Longest first: "at the top left" begins with "at the top".
    alternatives = (r"\s+".join(phrase.split()) for phrase in sorted(phrases, key=len, reverse=True))
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b", re.IGNORECASE)


def _sentence_start(text: str, at: int) -> int:
    return max(text.rfind(mark, 0, at) for mark in ".!?\n") + 1


def _sentence_end(text: str, at: int) -> int:
    ends = [end for mark in ".!?\n" if (end := text.find(mark, at)) >= 0]
    return min(ends, default=len(text))
