"""What a person sees while stages run: a live line in a terminal, plain lines elsewhere."""

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
    """Tells how much is done."""

    def __call__(self, done: int, note: str, total: int | None = None) -> None:
        """``total`` if it was not known before."""


PLAIN_SECONDS = 5.0
PLAIN_WIDTH = 130  # of tables, where there is no terminal to ask


def plain_or_live(stderr: bool = False) -> Console:
    """A console on stdout or stderr; in a job's log, and wherever there is no terminal, without control characters.

    Texts are printed as they are: square brackets and ``:names:`` in a path or a message are no markup. What is to be
    coloured is a ``rich.text.Text``.
    """
    console = Console(
        stderr=stderr, highlight=False, markup=False, emoji=False, force_terminal=False if in_job() else None
    )
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


class Reporter:
    """Tells a person about stages; ``progress`` yields a function of (done so far, note)."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or plain_or_live()
        self._is_broken = False

    def say(self, text: str | Text) -> None:
        """Print one line, however long, as it is."""
        try:
            self.console.print(text, soft_wrap=True, markup=False, emoji=False)
        except (OSError, ValueError) as error:  # a closed pipe, a full disk: the stage goes on without being shown
            if not self._is_broken:
                log.warning("progress cannot be printed: %s", error)
            self._is_broken = True

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Update]:
        """Show work of ``total`` units until the block ends."""
        if self.console.is_terminal:
            with self._live(title, total) as update:
                yield update
        else:
            yield self._plain(title, total)

    @contextmanager
    def counting(self, title: str) -> Iterator[Show]:
        """Show the figures of a stage over shards until the block ends."""
        with self.progress(title, 0) as update:
            yield lambda figures: update(figures.rows, told(figures), figures.rows_in_all)

    def parts(self) -> Callable[[str, int, int, float], None]:
        """A function of (part, step, steps, loss) that shows the parts of a long training one after the other."""
        started: dict[str, float] = {}
        last = [0.0]

        def update(part: str, step: int, steps: int, loss: float) -> None:
            began = started.setdefault(part, time.monotonic())
            if step == steps or time.monotonic() - last[0] >= PLAIN_SECONDS:
                last[0] = time.monotonic()
                left = (last[0] - began) / max(step, 1) * (steps - step)
                self.say(f"  {part}: step {step}/{steps}  loss {loss:.3f}  {left / 60:.1f} min left")

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
            task = bar.add_task(title, total=total, note="")

            def update(done: int, note: str, total: int | None = None) -> None:
                bar.update(task, completed=done, note=note, total=total)

            yield update

    def _plain(self, title: str, total: int) -> Update:
        last = [float("-inf"), -1.0]  # that a stage has begun is told at once

        known = total

        def update(done: int, note: str, total: int | None = None) -> None:
            if time.monotonic() - last[0] >= PLAIN_SECONDS and done != last[1]:
                last[:] = [time.monotonic(), done]
                self.say(f"  {title}: {done}/{total or known}{'  ' + note if note else ''}")

        return update


def told(figures: Figures) -> str:
    """Speed, failures, replicas and the time left, in a line."""
    if not figures.actors and not figures.rows_per_second:
        return "starting replicas"
    left = figures.seconds_left
    parts = [
        f"{figures.rows_per_second:.1f} rows/s, {figures.tokens_per_second:,.0f} tokens/s",
        f"{figures.rows_failed} failed" if figures.rows_failed else "",
        f"{figures.actors} replica{'s' if figures.actors != 1 else ''}",
        f"{left / 60:.1f} min left" if left else "",
    ]
    return ", ".join(filter(None, parts))
