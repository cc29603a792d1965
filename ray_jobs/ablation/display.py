"""Console output of an ablation: the results of finished runs, the stages of running ones, and the table of results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jsfree.ablation.definition import Ablation
from jsfree.ablation.page import ModeTable
from jsfree.ablation.results import describe_result
from jsfree.report.tables import Cell, duration
from jsfree.run.run import Run
from ray_jobs.ablation.schedule import Task, makers

MAX_METRICS = 7
"""Columns of metrics in the table of results."""
ROWS = re.compile(r" [0-9]+/[0-9]+$")
"""The count of rows at the end of a stage's description."""


class ConsoleDisplay:
    """Prints the progress of an ablation: live lines in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, ablation: Ablation, tasks: Sequence[Task]) -> None:
        self._console = console
        self._figure = ablation.figure
        self._width = max(len(task.name) for task in tasks)
        self._ended, self._total = 0, len(tasks)
        self._live: Live | None = None
        self._stages: dict[str, str] = {}
        self.after_each: Callable[[], object] = lambda: None
        """Called after each run that ended."""

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show running tasks below the printed lines until the block ends, if the console is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, transient=True, auto_refresh=False) as self._live:
            yield
        self._live = None

    def started(self, task: Task) -> None:
        """Print where the output of a run goes."""
        self._stages.pop(task.name, None)
        if self._live is None:
            self._say(task.name, f"started; log: {task.log}")

    def ended(self, task: Task, error: str, seconds: float | None) -> None:
        """Print the result of a run, or its error and its log."""
        self._ended += 1
        count = f"[{self._ended}/{self._total}]"
        if error:
            self._say(task.name, Text.assemble(("failed", "bold red"), f" {count}: {error}; log: {task.log}"))
        else:
            result = describe_result(Run(task.config), self._figure.metrics, self._figure.mode)
            when = "done before" if seconds is None else f"done in {duration(seconds)}"
            self._say(task.name, f"{when} {count}: {result}")
        self.after_each()

    def running(self, progress: Mapping[str, str]) -> None:
        """Show the stage of each running task."""
        for name, stage in progress.items():
            before = self._stages.get(name, "")
            self._stages[name] = stage or before or "starting"
            if self._live is None and ROWS.sub("", self._stages[name]) != ROWS.sub("", before):
                self._say(name, ROWS.sub("", stage or "starting"))
        if self._live is not None:
            table = Table.grid(padding=(0, 2))
            for name in progress:
                table.add_row(f"  {name:<{self._width}}", self._stages[name])
            self._live.update(table, refresh=True)

    def _say(self, name: str, message: str | Text) -> None:
        self._console.print(Text.assemble(f"  {name:<{self._width}}  ", message), soft_wrap=True)


def print_plan(console: Console, tasks: Sequence[Task]) -> None:
    """Print the runs of an ablation, and which stages each takes over from which other run."""
    table = Table(title="Runs in order", title_justify="left")
    for title in ("run", "state", "takes over"):
        table.add_column(title)
    for position, task in enumerate(tasks):
        taken: dict[str, list[str]] = {}
        for (number, name), maker in makers(tasks, position).items():
            stage = name if task.config.rounds == 1 else f"{number}/{name}"
            taken.setdefault(maker.name, []).append(stage)
        words = "; ".join(f"{', '.join(stages)} from {maker}" for maker, stages in taken.items())
        table.add_row(task.name, "done" if task.is_done() else "to run", words)
    console.print(table)


def print_results(console: Console, tables: Sequence[ModeTable]) -> None:
    """Print the results of all cells: means, with the range over seeds."""
    for of_mode in tables:
        metrics = of_mode.metrics[:MAX_METRICS]
        table = Table(title=f"{of_mode.mode.capitalize()} captions: mean (range over seeds)", title_justify="left")
        table.add_column("", no_wrap=True)
        for metric in metrics:
            table.add_column(metric.label + (f", {metric.unit}" if metric.unit else ""), justify="right")
        for row in of_mode.rows:
            table.add_row(row.name, *map(_cell, row.cells[: len(metrics)]))
        console.print(table)


def _cell(cell: Cell) -> Text:
    return Text.assemble(cell.value, (f" ({cell.interval.replace(' to ', '–')})" if cell.interval else "", "dim"))
