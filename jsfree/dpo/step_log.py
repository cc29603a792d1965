"""Progress of a training: its step log, TensorBoard, a line for the console, and a warning."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jsfree.run.folder import Folder

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

STEPS = "steps.json"
TENSORBOARD = "tensorboard"
LOG_SECONDS = 1.0
"""Seconds between two writes of ``steps.json``."""
UPLOAD_SECONDS = 60.0
"""Seconds between two uploads of TensorBoard's files, where the run is not on a local path."""
WARNING_STEPS = 3
"""Steps over which the chosen captions' change is averaged."""
Step = dict[str, float]


class StepLog:
    """Publishes steps: ``steps.json`` at most once a second and after the last step, and every step to TensorBoard."""

    def __init__(self, folder: Folder, scratch: str) -> None:
        """Prepare.

        Args:
            folder: folder of the training.
            scratch: local folder for TensorBoard's files where ``folder`` is not local.
        """
        self._folder, self._events = folder, folder / TENSORBOARD
        self._directory = self._events.path if self._events.is_local else scratch
        self._written, self._uploaded = 0.0, time.monotonic()
        self._writer: SummaryWriter | None = None

    def __call__(self, history: Sequence[Step], total: int) -> None:
        """Publish the last step of ``history``, of ``total`` steps."""
        new = history[-1:]
        if self._writer is None:  # a resumed training repeats all steps: its predecessor may not have written them
            from tensorboardX import SummaryWriter

            self._writer, new = SummaryWriter(self._directory), history
        for step in new:
            for name, value in step.items():
                if name not in ("step", "epoch"):
                    tag = f"train/{name}".replace("train/validation_", "validation/")
                    self._writer.add_scalar(tag, value, int(step["step"]))
        if len(history) == total or time.monotonic() - self._written >= LOG_SECONDS:
            self._written = time.monotonic()
            self._folder.write_json(STEPS, list(history))
        if not self._events.is_local and time.monotonic() - self._uploaded >= UPLOAD_SECONDS:
            self._uploaded = time.monotonic()
            self._writer.flush()
            self._events.upload(self._directory)

    def close(self) -> None:
        """Write what TensorBoard's writer still buffers."""
        if self._writer is not None:
            self._writer.close()

    def upload(self) -> None:
        """Upload TensorBoard's files where the run is not on a local path."""
        if self._writer is not None and not self._events.is_local:
            self._events.upload(self._directory)


@contextmanager
def step_log(folder: Folder) -> Iterator[StepLog]:
    """A step log that is closed, and uploaded unless an error is raised, at the end of the block."""
    with tempfile.TemporaryDirectory() as scratch:
        log = StepLog(folder, scratch)
        try:
            yield log
        finally:
            log.close()
        log.upload()


def summary_line(steps: Sequence[Step]) -> str:
    """The figures of the last step in one line."""
    last = steps[-1]
    formats = {"loss": ".3f", "accuracy": ".2f", "margin": "+.2f", "nll": ".3f"}
    parts = [f"{name} {last[name]:{form}}" for name, form in formats.items() if name in last]
    validation = [step["validation_loss"] for step in steps if "validation_loss" in step]
    if validation:
        parts.append(f"held out {validation[-1]:.3f}")
    return "  ".join([*parts, f"{last['tokens_per_second']:,.0f} tokens/s"])


class ChosenLogpWarning:
    """Warns once if the chosen captions become less likely in absolute terms, which the DPO loss does not penalise."""

    def __init__(self, threshold: float | None, warn: Callable[[str], None]) -> None:
        """Prepare.

        Args:
            threshold: ``train.chosen_alarm``, nats of log-probability lost a token; None never warns.
            warn: receives the message.
        """
        self._threshold = threshold
        self._warn = warn

    def __call__(self, steps: Sequence[Step]) -> None:
        """Check all steps so far."""
        if self._threshold is None:
            return
        for end in range(WARNING_STEPS, len(steps) + 1):
            lost = -sum(step.get("chosen_change", 0.0) for step in steps[end - WARNING_STEPS : end]) / WARNING_STEPS
            if lost > self._threshold:
                self._warn(
                    f"  warning: at step {end} the chosen captions have lost {lost:.2f} of log-probability a token"
                    f" (train.chosen_alarm: {self._threshold:g}); raise train.sft_weight or lower train.learning_rate"
                )
                self._threshold = None
                return
