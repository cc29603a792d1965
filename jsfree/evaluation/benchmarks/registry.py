"""The benchmarks by name, and how each is built from options."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jsfree.errors import ConfigError
from jsfree.evaluation.benchmarks import vocabulary
from jsfree.evaluation.benchmarks.amber import NOUN_STACKS, Amber, NounStack
from jsfree.evaluation.benchmarks.base import Suite
from jsfree.evaluation.benchmarks.chair import STACKS, Chair, Stack
from jsfree.evaluation.benchmarks.halbench import EXTRACTORS, Extractor, HalBench
from jsfree.evaluation.benchmarks.ic import IC, read_categories
from jsfree.evaluation.benchmarks.mmhal import MMHal
from jsfree.evaluation.benchmarks.pope import SCORINGS, Pope, Scoring
from jsfree.evaluation.benchmarks.short_answers import ShortAnswers
from jsfree.evaluation.benchmarks.text_answers import TextAnswers
from jsfree.judge.judging import Judge
from jsfree.judge.settings import JudgeSettings, read_settings


@dataclass(frozen=True)
class SuiteOptions:
    """Options of all suites; a suite uses those that concern it.

    Args:
        vocabulary: file of object words; None: the built-in ones.
        stack: implementation of CHAIR.
        extractor: how Object HalBench finds objects in answers.
        beams: beams of Object HalBench.
        judges: settings, or files of them, of the judge of IC, MMHal-Bench and Object HalBench, and of a second one
            whose agreement with it on IC and MMHal-Bench is reported; without any, the default judge.
        budget: maximum cost of each judge; None: that of its settings.
        scoring: how answers to POPE are read.
        vectors: word vectors of AMBER; None leaves similarities out.
        nouns: how AMBER finds nouns.
        categories: file with the number of images of each category of IC.
    """

    vocabulary: str | None = None
    stack: str = "original"
    extractor: str = "words"
    beams: int = 3
    judges: tuple[str | JudgeSettings, ...] = ()
    budget: float | None = None
    scoring: str = "original"
    vectors: str | None = None
    nouns: str = "rule"
    categories: str | None = None

    @cached_property
    def open_judges(self) -> tuple[Judge, Judge | None]:
        """The judge, and the second one if there is one; all suites share them, with their budget and counts.

        Raises:
            ConfigError: there are more, or the settings of one are wrong.
        """
        if len(self.judges) > 2:
            raise ConfigError(f"{len(self.judges)} judges are named", "name one, or two to see how they agree")
        report = logging.getLogger(__name__).info
        first, *others = [Judge(_settings(named, self.budget), report) for named in self.judges or (None,)]
        return first, others[0] if others else None


def _chair(options: SuiteOptions) -> Suite:
    stack: Stack = _choice("--stack", options.stack, STACKS)
    return Chair(vocabulary.load(options.vocabulary), stack)


def _halbench(options: SuiteOptions) -> Suite:
    extractor: Extractor = _choice("--extractor", options.extractor, EXTRACTORS)
    judge = options.open_judges[0] if extractor == "judge" else None
    return HalBench(vocabulary.load(options.vocabulary, all_phrases=True), extractor, options.beams, judge)


def _pope(options: SuiteOptions) -> Suite:
    scoring: Scoring = _choice("--scoring", options.scoring, SCORINGS)
    return Pope(scoring=scoring)


def _amber(options: SuiteOptions) -> Suite:
    nouns: NounStack = _choice("--nouns", options.nouns, NOUN_STACKS)
    return Amber(nouns=nouns, vectors=options.vectors)


def _mmhal(options: SuiteOptions) -> Suite:
    return MMHal(*options.open_judges)


def _ic(options: SuiteOptions) -> Suite:
    judge, second = options.open_judges
    categories = None if options.categories is None else read_categories(options.categories)
    return IC(judge, second=second, categories=categories)


def _settings(named: str | JudgeSettings | None, budget: float | None) -> JudgeSettings:
    return named if isinstance(named, JudgeSettings) else read_settings(named, {"budget": budget})


BUILDERS: dict[str, tuple[type[Suite], Callable[[SuiteOptions], Suite]]] = {
    Chair.name: (Chair, _chair),
    HalBench.name: (HalBench, _halbench),
    Pope.name: (Pope, _pope),
    Amber.name: (Amber, _amber),
    MMHal.name: (MMHal, _mmhal),
    IC.name: (IC, _ic),
    ShortAnswers.name: (ShortAnswers, lambda _: ShortAnswers()),
    TextAnswers.name: (TextAnswers, lambda _: TextAnswers()),
}
"""The class of each suite, and the function that builds it."""


def build(name: str, options: SuiteOptions) -> Suite:
    """Build a suite.

    Raises:
        ConfigError: there is no such suite, or an option is wrong.
        SourceError: the vocabulary cannot be read.
    """
    return BUILDERS[_choice("SUITE", name, BUILDERS)][1](options)


def _choice(option: str, value: str, known: Iterable[str]) -> Any:
    names = list(known)
    if value not in names:
        raise ConfigError(f"{option} {value!r} is unknown", f"choose from {', '.join(names)}")
    return value
