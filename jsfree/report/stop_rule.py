"""The stop rule of later rounds: what each round changed, and where the rule ended the run, or would have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jsfree.config import RoundsStop, RunConfig
from jsfree.evaluation.rounds_stop import Check, Verdict, first_worse, verdicts
from jsfree.report.tables import Cell
from jsfree.run.run import Run


@dataclass(frozen=True)
class StopLine:
    """The changes of one round, formatted: a cell and whether its limit is exceeded, for each metric of the rule."""

    models: str
    cells: list[tuple[Cell, bool]]
    worse: bool


@dataclass(frozen=True)
class StopView:
    """The conclusion in words, the metrics of the rule with their limits, and a line for each later round."""

    text: str
    mode: str
    header: list[tuple[str, str]]
    lines: list[StopLine]


def stop_view(run: Run) -> StopView | None:
    """The verdicts of the run's rule, or of the default rule if it has none; None before round 2 is evaluated."""
    found = verdicts(run, run.config.rounds_stop or RoundsStop())
    if not found:
        return None
    header = [(check.metric.label, _limit(check)) for check in found[0].checks]
    lines = [StopLine(_models(each), [_cell(check) for check in each.checks], each.is_worse) for each in found]
    return StopView(_text(found, run.config), found[0].mode, header, lines)


def _text(found: Sequence[Verdict], config: RunConfig) -> str:
    stop = first_worse(found)
    if config.rounds_stop is not None:
        if stop is None:
            return "No round made the captions worse by the limits of the run’s stop rule."
        ended = "The run stopped" if stop.round < config.rounds else "The stop rule was applied"
        return f"{ended} after round {stop.round}: {stop}. The result of the run is m{stop.last_good}."
    if stop is None:
        return "The run has no stop rule. The default rule would not have stopped it."
    return (
        f"The run has no stop rule. With the default rule it would have stopped after round {stop.round}: {stop}. Its"
        f" result would have been m{stop.last_good}."
    )


def _limit(check: Check) -> str:
    side = "at least" if check.limits_decrease else "at most"
    unit = f" {check.metric.unit}" if check.metric.unit else ""
    return f"{side} {check.metric.format(check.limit, sign=True)}{unit}"


def _cell(check: Check) -> tuple[Cell, bool]:
    value, low, high = (check.metric.format(each, sign=True) for each in check.change)
    return Cell(value, f"{low} to {high}"), check.is_exceeded


def _models(verdict: Verdict) -> str:
    return f"m{verdict.last_good} → m{verdict.round}"
