"""``jsfree watch``: the state of a run in the terminal, renewed while it works; also of a run elsewhere, by its URI."""

# No `from __future__ import annotations`: Typer reads these annotations when the command is registered.

import json
import time
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live

from jsfree.monitor.status import RUNNING, RunStatus, read_status
from jsfree.run.run import Run
from ray_jobs.commands.options import AsJson, Debug, ExistingRun, set_log_level
from ray_jobs.commands.watch_view import view

Every = Annotated[float, typer.Option("--every", min=0.5, metavar="SECONDS", help="Seconds between updates.")]
Once = Annotated[bool, typer.Option("--once", help="Print the state once and exit.")]
Pairs = Annotated[int, typer.Option("--pairs", min=0, help="Number of newest pairs to show.")]


def watch(
    run: ExistingRun,
    every: Every = 2.0,
    pairs: Pairs = 2,
    once: Once = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a run is doing: stages, rates, failed rows, training curves and its newest pairs."""
    set_log_level(debug)
    existing = Run.existing(run)
    if as_json:
        typer.echo(json.dumps(read_status(existing, pairs=pairs).as_json(), indent=2, ensure_ascii=False))
        return
    from ray_jobs.commands.console import plain_or_live

    console = plain_or_live()
    status = read_status(existing, pairs=pairs)
    if once or not console.is_terminal or status.state != RUNNING:
        console.print(_shown(status, console))
        return
    with suppress(KeyboardInterrupt):
        _follow(existing, status, console, every, pairs)


def _follow(run: Run, status: RunStatus, console: Console, every: float, pairs: int) -> None:
    """Show the run until it no longer runs; the last view stays on the screen."""
    with Live(_shown(status, console), console=console, auto_refresh=False) as live:
        while status.state == RUNNING:
            time.sleep(every)
            status = read_status(run, pairs=pairs)
            live.update(_shown(status, console), refresh=True)


def _shown(status: RunStatus, console: Console) -> RenderableType:
    return Group(*view(status, console.width))
