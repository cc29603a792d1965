"""What a training tells while it goes on: a log of its steps, TensorBoard, a few words, and an alarm."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jsfree.run.folder import Folder

STEPS = "steps.json"
TENSORBOARD = "tensorboard"
LOG_SECONDS = 1.0
UPLOAD_SECONDS = 60.0
"""Between two uploads of TensorBoard's files, where the run is not on a local path."""
ALARM_STEPS = 3
"""Steps over which the chosen captions' change is averaged."""
Step = dict[str, float]


@contextmanager
def step_log(folder: Folder) -> Iterator[Callable[[Sequence[Step], int], None]]:
    """Publish steps: ``steps.json`` at most once a second and after the last one, and each to TensorBoard."""
    from tensorboardX import SummaryWriter

    published, uploaded = [0.0], [time.monotonic()]
    writers: list[Any] = []
    with tempfile.TemporaryDirectory() as away:
        events = folder / TENSORBOARD
        directory = events.path if events.is_local else away

        def publish(history: Sequence[Step], total: int) -> None:
            fresh = history[-1:]
            if not writers:  # a resumed training tells all again: its predecessor may not have come to it
                writers.append(SummaryWriter(directory))
                fresh = history
            for figures in fresh:
                for name, value in figures.items():
                    if name not in ("step", "epoch"):
                        tag = f"train/{name}".replace("train/validation_", "validation/")
                        writers[0].add_scalar(tag, value, int(figures["step"]))
            if len(history) == total or time.monotonic() - published[0] >= LOG_SECONDS:
                published[0] = time.monotonic()
                folder.write_json(STEPS, list(history))
            if not events.is_local and time.monotonic() - uploaded[0] >= UPLOAD_SECONDS:
                uploaded[0] = time.monotonic()
                writers[0].flush()
                events.upload(directory)

        try:
            yield publish
        finally:
            for writer in writers:
                writer.close()
        if writers and not events.is_local:
            events.upload(directory)


def described(steps: Sequence[Step]) -> str:
    """The last step in a few words."""
    last = steps[-1]
    words = [f"loss {last['loss']:.3f}", f"accuracy {last['accuracy']:.2f}", f"margin {last['margin']:+.2f}"]
    looked = [step["validation_loss"] for step in steps if "validation_loss" in step]
    if looked:
        words.append(f"held out {looked[-1]:.3f}")
    return "  ".join([*words, f"{last['tokens_per_second']:,.0f} tokens/s"])


class Alarm:
    """Warns, once, when the chosen captions themselves become unlikely, which the DPO loss does not see."""

    def __init__(self, threshold: float | None, say: Callable[[str], None]) -> None:
        self.threshold = threshold
        self._say = say

    def __call__(self, steps: Sequence[Step]) -> None:
        """Look at all steps so far."""
        if self.threshold is None:
            return
        for at in range(ALARM_STEPS, len(steps) + 1):
            lost = -sum(step["chosen_change"] for step in steps[at - ALARM_STEPS : at]) / ALARM_STEPS
            if lost > self.threshold:
                self._say(
                    f"  warning: at step {at} the chosen captions have lost {lost:.2f} of log-probability a token"
                    f" (train.chosen_alarm: {self.threshold:g}); raise train.sft_weight or lower train.learning_rate"
                )
                self.threshold = None
                return
