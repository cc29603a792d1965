"""Held-out pairs: when to evaluate them, when to stop early, and which weights to publish. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jsfree.config import Train
from jsfree.errors import StageError

LOSS = "validation_loss"


class EarlyStopping:
    """Tracks the loss of the held-out pairs. Its state is a function of the step log, so a resumed run repeats it."""

    def __init__(self, settings: Train, history: Sequence[Mapping[str, float]]) -> None:
        self.settings = settings.validation
        self.best = math.inf
        self._since_best = 0
        self._improved = False
        for step in history:
            self._record(step)

    def is_due(self, step: int, total: int) -> bool:
        """Whether the held-out pairs are evaluated after ``step``, counted from 0, of ``total``."""
        return (step + 1) % self.settings.every == 0 or step + 1 == total

    def should_stop(self, step: Mapping[str, float]) -> bool:
        """Record a step; whether training stops because the loss has not fallen for ``patience`` evaluations."""
        self._record(step)
        return self.settings.patience is not None and self._since_best >= self.settings.patience

    def should_publish(self, step: Mapping[str, float], *, is_last: bool) -> bool:
        """Whether the weights after the step recorded last are the best so far, or the last."""
        if self.settings.publish == "best" and self.settings.pairs:
            return LOSS in step and self._improved
        return is_last

    def check_finite(self) -> None:
        """Check that the held-out loss was a finite number at least once.

        Raises:
            StageError: it never was.
        """
        if self.settings.pairs and not math.isfinite(self.best):
            raise StageError(
                "the loss of the held-out pairs was never a finite number: training diverged",
                "lower train.learning_rate",
            )

    def _record(self, step: Mapping[str, float]) -> None:
        if LOSS not in step:
            return
        self._improved = step[LOSS] < self.best
        if self._improved:
            self.best, self._since_best = step[LOSS], 0
        else:
            self._since_best += 1
