"""The newest training of a run: its last step, its curves, and the time that remains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jsfree.errors import JsfreeError
from jsfree.report import reading
from jsfree.run.run import Run

CURVES = ("loss", "validation_loss", "accuracy", "chosen_reward", "rejected_reward", "margin", "nll", "grad_norm")
MAX_POINTS = 120
"""Points of a curve."""
RECENT_STEPS = 20
"""Steps whose mean time estimates that of the remaining ones."""


@dataclass(frozen=True)
class Point:
    """A point of a curve: the mean over some steps, at the last of them."""

    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class TrainingStatus:
    """A training of ``steps`` steps, of which ``step`` are done; ``curves`` are by name (``CURVES``)."""

    round: int
    step: int
    steps: int | None
    """None if the number of selected pairs is not known."""
    tokens_per_second: float | None
    seconds_remaining: float | None
    curves: dict[str, list[Point]]


def training_status(run: Run) -> TrainingStatus | None:
    """The training of the last round that has a step log; None if no round has one.

    Raises:
        StorageError: the step log cannot be read.
    """
    for number in reversed(run.rounds()):
        history = reading.training_log(run, number)
        if history:
            is_done = run.manifest(number, "train") is not None
            return _status(number, history, len(history) if is_done else _planned_steps(run, number))
    return None


def _status(number: int, history: Sequence[Mapping[str, float]], steps: int | None) -> TrainingStatus:
    recent = [step["seconds"] for step in history[-RECENT_STEPS:] if "seconds" in step]
    remaining = None if steps is None else max(0, steps - len(history))
    return TrainingStatus(
        round=number,
        step=len(history),
        steps=steps,
        tokens_per_second=history[-1].get("tokens_per_second"),
        seconds_remaining=remaining * sum(recent) / len(recent) if recent and remaining is not None else None,
        curves={name: points for name in CURVES if (points := curve(history, name))},
    )


def curve(history: Sequence[Mapping[str, float]], name: str, limit: int = MAX_POINTS) -> list[Point]:
    """The figure ``name`` of a step log as at most ``limit`` points, each the mean over equally many steps.

    Steps whose figure is not finite, as when training diverges, are left out.
    """
    logged = [(int(step["step"]), step[name]) for step in history if name in step and math.isfinite(step[name])]
    points = []
    count = min(limit, len(logged))
    for index in range(count):
        part = logged[index * len(logged) // count : (index + 1) * len(logged) // count]
        points.append(Point(part[-1][0], sum(value for _, value in part) / len(part)))
    return points


def _planned_steps(run: Run, number: int) -> int | None:
    from jsfree.dpo.loop import steps_per_epoch  # imports torch

    selected = run.manifest(number, "selected")
    if selected is None:
        return None
    try:
        return steps_per_epoch(selected.rows_out, run.config) * run.config.train.epochs
    except JsfreeError:  # the training itself reports that there are too few pairs
        return None
