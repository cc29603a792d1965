"""The result of a check, for preflight and for the smoke run alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from jsfree.errors import JsfreeError


class Verdict(StrEnum):
    """The outcome of a check."""

    OK = "ok"
    NOTE = "note"
    """Not an obstacle, but worth knowing."""
    FAILS = "fails"


@dataclass(frozen=True)
class Finding:
    """One check: its area and name, the verdict, what was found, and how to remedy it."""

    area: str
    name: str
    verdict: Verdict
    found: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        """The finding as ``jsfree preflight --json`` prints it."""
        values = asdict(self)
        return {"area": values.pop("area"), "check": values.pop("name"), **values, "verdict": str(self.verdict)}


def ok(area: str, name: str, found: str) -> Finding:
    """A passed check."""
    return Finding(area, name, Verdict.OK, found)


def note(area: str, name: str, found: str, remedy: str = "") -> Finding:
    """A passed check with something worth knowing."""
    return Finding(area, name, Verdict.NOTE, found, remedy)


def fails(area: str, name: str, found: str, remedy: str) -> Finding:
    """A failed check."""
    return Finding(area, name, Verdict.FAILS, found, remedy)


def from_error(area: str, name: str, error: JsfreeError, remedy: str = "") -> Finding:
    """A failed check whose problem and remedy are those of an error.

    Args:
        remedy: used if the error has none.
    """
    return fails(area, name, error.problem, error.remedy or remedy)


def run_check(area: str, name: str, check: Callable[[], Iterable[Finding]], remedy: str = "") -> Iterator[Finding]:
    """Yield the findings of ``check``; a ``JsfreeError`` that it raises becomes the last one.

    Args:
        remedy: used for an error that has none.
    """
    try:
        yield from check()
    except JsfreeError as error:
        yield from_error(area, name, error, remedy)


def none_fails(findings: Iterable[Finding]) -> bool:
    """Whether no check failed."""
    return all(finding.verdict is not Verdict.FAILS for finding in findings)
