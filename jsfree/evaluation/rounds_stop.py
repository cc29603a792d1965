"""The stop rule of later rounds (``rounds_stop``): which round made the captions worse, and which model is the result.

    changes of label-free metrics, paired by image  ->  limits of the rule  ->  the first worse round

The evaluation of each round stores the changes in ``label_free.json``. Everything else follows from them and from the
run's settings, so a resumed run decides the same. No metric with ground truth is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsfree.config import RoundsStop
from jsfree.evaluation.metrics import LABEL_FREE, Metric
from jsfree.evaluation.statistics import Interval
from jsfree.run.run import Run
from jsfree.run.stages import LABEL_FREE as LABEL_FREE_FILE

CHANGES = "changes"
"""Key of ``label_free.json``: changes since the model that the round started from, by mode and metric."""
FIRST = 2
"""The first round that is judged: round 1 is compared with m0 by the whole report."""
_METRICS = {metric.name: metric for metric in LABEL_FREE} | {
    "words": Metric("words", "Words", "relative change of their number", None)
}


@dataclass(frozen=True)
class Check:
    """The change of a metric, and the largest change that the rule allows."""

    metric: Metric
    change: Interval
    limit: float

    @property
    def is_exceeded(self) -> bool:
        """Whether the whole interval of the change is beyond the limit."""
        return self.change.high < self.limit if self.limits_decrease else self.change.low > self.limit

    @property
    def limits_decrease(self) -> bool:
        """Whether the limit is one of a decrease: the metric must not fall below it."""
        return self.metric.better == "higher" or self.metric.name == "words"

    def __str__(self) -> str:
        value, low, high, limit = (self.metric.format(each, sign=True) for each in (*self.change, self.limit))
        unit = f" {self.metric.unit}" if self.metric.unit else ""
        return f"{self.metric.label} {value}{unit} ({low} to {high}; limit {limit})"


@dataclass(frozen=True)
class Verdict:
    """The comparison of the model of round ``round`` with that of the round before, in one mode."""

    round: int
    mode: str
    checks: tuple[Check, ...]

    @property
    def is_worse(self) -> bool:
        """Whether the rule ends the run after this round."""
        return bool(self.exceeded)

    @property
    def exceeded(self) -> list[Check]:
        """The checks whose limits are exceeded."""
        return [check for check in self.checks if check.is_exceeded]

    @property
    def last_good(self) -> int:
        """The round before, whose model is the result if this one is worse."""
        return self.round - 1

    def __str__(self) -> str:
        worse = "worse" if self.is_worse else "not worse"
        shown = "; ".join(map(str, self.exceeded or self.checks))
        return f"m{self.round} is {worse} than m{self.last_good} in {self.mode} captions: {shown}"

    def as_json(self) -> dict[str, Any]:
        """The entry of ``run.json`` for a run that this verdict ended."""
        return {
            "worse_round": self.round,
            "last_good_round": self.last_good,
            "mode": self.mode,
            "reasons": [str(check) for check in self.exceeded],
        }


def judge(number: int, mode: str, changes: Mapping[str, Mapping[str, float]], rule: RoundsStop) -> Verdict:
    """Compare a round with the one before.

    Args:
        changes: changes of label-free metrics in ``mode``, each ``{"value", "low", "high"}``
            (``jsfree.evaluation.labelfree.changes``).
    """
    quality = _METRICS[rule.metric]
    limits = {
        rule.metric: -rule.max_loss if quality.better == "higher" else rule.max_loss,
        "words": -rule.max_lost_words,
        "repeated_sentences": rule.max_added_repeats,
        "truncated": rule.max_added_truncated,
    }
    return Verdict(
        number,
        mode,
        tuple(Check(_METRICS[name], Interval(**changes[name]), limit) for name, limit in limits.items()),
    )


def first_worse(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The first verdict that ends a run; None if there is none."""
    return next((verdict for verdict in verdicts if verdict.is_worse), None)


def verdicts(run: Run, rule: RoundsStop) -> list[Verdict]:
    """The verdicts of a rule on all later rounds whose changes are known, in order.

    Raises:
        StorageError: the metrics of a round cannot be read.
    """
    mode = rule.mode or next(iter(run.config.evaluate.modes))
    known = {number: _changes(run, number, mode) for number in run.rounds() if number >= FIRST}
    return [judge(number, mode, changes, rule) for number, changes in known.items() if changes]


def stop_of(run: Run) -> Verdict | None:
    """The verdict that ends the run by its own rule; None if it has no rule, or no round is worse yet.

    Raises:
        StorageError: the metrics of a round cannot be read.
    """
    rule = run.config.rounds_stop
    return None if rule is None else first_worse(verdicts(run, rule))


def last_round(run: Run) -> int:
    """The round after which the run ends: the first worse one, or the last of ``rounds``.

    Raises:
        StorageError: the metrics of a round cannot be read.
    """
    stop = stop_of(run)
    return run.config.rounds if stop is None else min(stop.round, run.config.rounds)


def good_rounds(run: Run, numbers: Sequence[int]) -> list[int]:
    """Those of ``numbers`` that precede the first worse round; the last of them has the result of the run.

    Raises:
        StorageError: the metrics of a round cannot be read.
    """
    stop = stop_of(run)
    return [number for number in numbers if stop is None or number < stop.round]


def _changes(run: Run, number: int, mode: str) -> Mapping[str, Mapping[str, float]]:
    """The changes in a mode that the evaluation of a round has stored; empty if there are none."""
    folder = run.round(number)
    stored = folder.read_json(LABEL_FREE_FILE) if folder.exists(LABEL_FREE_FILE) else {}
    found: Mapping[str, Mapping[str, float]] = stored.get(CHANGES, {}).get(mode, {})
    return found
