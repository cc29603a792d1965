"""What a check found, and how a check that cannot be made becomes a finding itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from jsfree.errors import JsfreeError


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    """It works, but a person should know."""
    FAILS = "fails"
    """The run cannot work so."""


@dataclass(frozen=True)
class Finding:
    """A line of the table: what was looked at, what was found, and what to do about it."""

    area: str
    check: str
    verdict: Verdict
    found: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "verdict": str(self.verdict)}


def ok(area: str, check: str, found: str) -> Finding:
    """A check that passed."""
    return Finding(area, check, Verdict.OK, found)


def note(area: str, check: str, found: str, remedy: str = "") -> Finding:
    """Something to know."""
    return Finding(area, check, Verdict.NOTE, found, remedy)


def fails(area: str, check: str, found: str, remedy: str) -> Finding:
    """Something that cannot work."""
    return Finding(area, check, Verdict.FAILS, found, remedy)


def failed(area: str, check: str, error: JsfreeError, remedy: str = "") -> Finding:
    """An error of ours as a finding: its message says what is wrong, and behind the last semicolon what to do."""
    found, semicolon, told = str(error).rpartition("; ")
    return Finding(area, check, Verdict.FAILS, found if semicolon else told, told if semicolon else remedy)


def attempted(area: str, check: str, work: Callable[[], Iterable[Finding]], remedy: str = "") -> Iterator[Finding]:
    """The findings of a check; one that raises an error of ours ends in it.

    Args:
        remedy: what to do about an error that does not say it.
    """
    try:
        yield from work()
    except JsfreeError as error:
        yield failed(area, check, error, remedy)


def works(findings: Iterable[Finding]) -> bool:
    """Whether nothing stands in the way."""
    return all(finding.verdict is not Verdict.FAILS for finding in findings)
