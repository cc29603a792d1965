"""Progress output of stages: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ray_jobs.cluster.jobs import in_job
from ray_jobs.shards.progress import Figures, Show

log = logging.getLogger(__name__)


class Update(Protocol):
    """Receives the progress of a stage."""

    def __call__(self, done: int, note: str, total: int | None = None) -> None:
        """Show that ``done`` units are finished; ``total`` replaces the total given at the start."""


PLAIN_SECONDS = 5.0
"""Interval between two plain lines of progress."""
PLAIN_WIDTH = 130
"""Columns of a table outside a terminal."""


def plain_or_live(stderr: bool = False) -> Console:
    """A console on stdout or stderr that prints strings literally; colours need a ``rich.text.Text``.

    Square brackets and ``:names:`` in a path or a message are not markup. In a job's log, and wherever there is no
    terminal, no control characters are printed.
    """
    console = Console(
        stderr=stderr, highlight=False, markup=False, emoji=False, force_terminal=False if in_job() else None
    )
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


class Reporter:
    """Prints messages and the progress of stages."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or plain_or_live()
        self._is_broken = False

    def say(self, text: str | Text) -> None:
        """Print one line literally, without wrapping it."""
        try:
            self.console.print(text, soft_wrap=True, markup=False, emoji=False)
        except (OSError, ValueError) as error:  # closed pipe or full disk: must not fail the stage
            if not self._is_broken:
                log.warning("progress cannot be printed: %s", error)
            self._is_broken = True

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Update]:
        """Show the progress of ``total`` units of work until the block ends."""
        if self.console.is_terminal:
            with self._live(title, total) as update:
                yield update
        else:
            yield self._plain(title, total)

    @contextmanager
    def counting(self, title: str) -> Iterator[Show]:
        """Show the progress of a stage over shards until the block ends."""
        with self.progress(title, 0) as update:
            yield lambda figures: update(figures.rows, describe_progress(figures), figures.rows_in_all)

    def parts(self) -> Callable[[str, int, int, float], None]:
        """A function of (part, step, steps, loss) that prints the progress of a training in several parts."""
        started: dict[str, float] = {}
        printed = [0.0]

        def update(part: str, step: int, steps: int, loss: float) -> None:
            began = started.setdefault(part, time.monotonic())
            if step == steps or time.monotonic() - printed[0] >= PLAIN_SECONDS:
                printed[0] = time.monotonic()
                remaining = (printed[0] - began) / max(step, 1) * (steps - step)
                self.say(f"  {part}: step {step}/{steps}  loss {loss:.3f}  {remaining / 60:.1f} min left")

        return update

    @contextmanager
    def _live(self, title: str, total: int) -> Iterator[Update]:
        columns = (
            TextColumn("  {task.description:<26}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=total or None, note="")

            def update(done: int, note: str, total: int | None = None) -> None:
                bar.update(task, completed=done, note=note, total=total)

            yield update

    def _plain(self, title: str, total: int) -> Update:
        printed = [float("-inf"), -1.0]  # so that the first call prints
        first_total = total

        def update(done: int, note: str, total: int | None = None) -> None:
            if time.monotonic() - printed[0] >= PLAIN_SECONDS and done != printed[1]:
                printed[:] = [time.monotonic(), done]
                self.say(f"  {title}: {done}/{total or first_total}{'  ' + note if note else ''}")

        return update


def describe_progress(figures: Figures) -> str:
    """Speed, failures, replicas and remaining time, in one line."""
    if not figures.actors and not figures.rows_per_second:
        return "starting replicas"
    remaining = figures.seconds_left
    parts = [
        f"{figures.rows_per_second:.1f} rows/s, {figures.tokens_per_second:,.0f} tokens/s",
        f"{figures.rows_failed} failed" if figures.rows_failed else "",
        f"{figures.actors} replica{'s' if figures.actors != 1 else ''}",
        f"{remaining / 60:.1f} min left" if remaining else "",
    ]
    return ", ".join(filter(None, parts))
