"""When held-out pairs are looked at, when training stops for their sake, and which weights are published. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jsfree.config import Train
from jsfree.errors import StageError

LOSS = "validation_loss"


class Validation:
    """What the losses of held-out pairs so far mean; a function of the history, so that a resumed run goes on alike."""

    def __init__(self, settings: Train, history: Sequence[Mapping[str, float]]) -> None:
        self.settings = settings.validation
        self.best = math.inf
        self.worse = 0
        for figures in history:
            self._see(figures)
        self._improved = False

    def due(self, step: int, total: int) -> bool:
        """Whether the held-out pairs are looked at after ``step``."""
        return (step + 1) % self.settings.every == 0 or step + 1 == total

    def stops(self, figures: Mapping[str, float]) -> bool:
        """Take note of a step; whether training ends with it, because the loss has not fallen for long enough."""
        self._see(figures)
        return self.settings.patience is not None and self.worse >= self.settings.patience

    def publishes(self, figures: Mapping[str, float], *, ended: bool) -> bool:
        """Whether the weights after a step that was noted are those to be published, as far as can be told."""
        if self.settings.publish == "best" and self.settings.pairs:
            return LOSS in figures and self._improved
        return ended

    def check(self) -> None:
        """See, at the end, that there were weights to publish.

        Raises:
            StageError: the held-out loss was never a number.
        """
        if self.settings.pairs and not math.isfinite(self.best):
            raise StageError(
                "the loss of the held-out pairs was never a finite number: training diverged",
                "lower train.learning_rate",
            )

    def _see(self, figures: Mapping[str, float]) -> None:
        if LOSS not in figures:
            return
        self._improved = figures[LOSS] < self.best
        if self._improved:
            self.best, self.worse = figures[LOSS], 0
        else:
            self.worse += 1
