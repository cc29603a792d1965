"""The benchmarks by name, and how each is built from options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from jsfree.errors import ConfigError
from jsfree.evaluation.benchmarks import vocabulary
from jsfree.evaluation.benchmarks.base import Suite
from jsfree.evaluation.benchmarks.chair import STACKS, Chair, Stack
from jsfree.evaluation.benchmarks.halbench import EXTRACTORS, Extractor, HalBench


@dataclass(frozen=True)
class SuiteOptions:
    """Options of all suites; a suite uses those that concern it.

    Args:
        vocabulary: file of object words; None: the built-in ones.
        stack: implementation of CHAIR.
        extractor: how Object HalBench finds objects in answers.
        beams: beams of Object HalBench.
    """

    vocabulary: str | None = None
    stack: str = "original"
    extractor: str = "words"
    beams: int = 3


def _chair(options: SuiteOptions) -> Suite:
    stack: Stack = _choice("--stack", options.stack, STACKS)
    return Chair(vocabulary.load(options.vocabulary), stack)


def _halbench(options: SuiteOptions) -> Suite:
    extractor: Extractor = _choice("--extractor", options.extractor, EXTRACTORS)
    return HalBench(vocabulary.load(options.vocabulary, all_phrases=True), extractor, options.beams)


BUILDERS: dict[str, tuple[type[Suite], Callable[[SuiteOptions], Suite]]] = {
    Chair.name: (Chair, _chair),
    HalBench.name: (HalBench, _halbench),
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
