"""Runs the tasks of an ablation, several at a time, each as a driver process of its own (``jsfree run``)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jsfree.errors import StorageError
from jsfree.run.lease import holder
from jsfree.run.record import read_record
from jsfree.run.run import Run
from ray_jobs.ablation.planning import Stage
from ray_jobs.ablation.schedule import State, Task, next_task

POLL_SECONDS = 1.0
STOP_SECONDS = 30.0
"""Time that a driver gets to end after SIGTERM."""
MAX_ERROR = 400
"""Maximum length of an error message, in characters."""


class Display(Protocol):
    """Receives the progress of the tasks."""

    def started(self, task: Task) -> None:
        """A driver was started."""

    def ended(self, task: Task, error: str, seconds: float | None) -> None:
        """A task is done, or failed with ``error``; ``seconds`` is None if it was done before."""

    def running(self, progress: Mapping[str, str]) -> None:
        """The stage of each running task, by the task's name; empty between two stages."""


@dataclass(frozen=True)
class Driver:
    """A running driver process."""

    position: int
    process: subprocess.Popen[bytes]
    log: Path
    started: float


class Drivers:
    """Runs tasks in order, at most ``parallel`` at a time; a failed task does not stop the others.

    Args:
        workspace: local folder for the configuration and the log of each task.
        environment: environment variables of the drivers, such as the address of the cluster.
    """

    def __init__(
        self, tasks: Sequence[Task], parallel: int, workspace: Path, environment: Mapping[str, str], display: Display
    ) -> None:
        self.tasks = tasks
        self.states: list[State] = ["waiting"] * len(tasks)
        self.errors: dict[int, str] = {}
        """Messages of failed tasks, by position."""
        self._parallel = parallel
        self._workspace = workspace
        self._environment = {**os.environ, **environment}
        self._display = display
        self._running: list[Driver] = []
        self._finished: set[tuple[int, Stage]] = set()

    def run(self) -> None:
        """Run all tasks that are not done; stop the drivers if the block is left by an exception or a signal."""
        try:
            while {"waiting", "running"} & set(self.states):
                self._collect()
                self._start_ready()
                self._display.running(self._progress())
                time.sleep(POLL_SECONDS)
        finally:
            self._stop()

    def _start_ready(self) -> None:
        """Start waiting tasks up to the limit; one whose run another driver holds is left for later."""
        states = list(self.states)
        while len(self._running) < self._parallel:
            position = next_task(self.tasks, states, self._has_finished)
            if position is None:
                return
            task = self.tasks[position]
            if holder(Run(task.config).folder):
                states[position] = "running"
            elif task.is_done():
                self._end(position, "", None)
                states[position] = "done"
            else:
                self._start(position)
                states[position] = "running"

    def _start(self, position: int) -> None:
        task = self.tasks[position]
        stem = self._workspace / task.cell / f"seed-{task.seed}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        config, log = stem.with_name(f"{stem.name}.yaml"), stem.with_name(f"{stem.name}.log")
        config.write_text(task.config.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "ray_jobs.ablation.child", str(os.getpid())]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, "run", "--config", str(config), "--no-preflight"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # Ctrl-C reaches only this process, which then stops the drivers
            )
        self._running.append(Driver(position, process, log, time.monotonic()))
        self.states[position] = "running"
        self._display.started(task)

    def _collect(self) -> None:
        for driver in [driver for driver in self._running if driver.process.poll() is not None]:
            self._running.remove(driver)
            error = "" if driver.process.returncode == 0 else _error_of(driver)
            self._end(driver.position, error, time.monotonic() - driver.started)

    def _end(self, position: int, error: str, seconds: float | None) -> None:
        self.states[position] = "failed" if error else "done"
        if error:
            self.errors[position] = error
        self._display.ended(self.tasks[position], error, seconds)

    def _has_finished(self, task: Task, stage: Stage) -> bool:
        known = self.tasks.index(task), stage
        if known not in self._finished and task.has_finished(stage):
            self._finished.add(known)
        return known in self._finished

    def _progress(self) -> dict[str, str]:
        tasks = [self.tasks[driver.position] for driver in self._running]
        return {task.name: describe_stage(Run(task.config)) for task in tasks}

    def _stop(self) -> None:
        """End the drivers, which keep their finished work."""
        for driver in self._running:
            driver.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for driver in self._running:
            try:
                driver.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                driver.process.kill()
                driver.process.wait()


def describe_stage(run: Run) -> str:
    """The stage that a run is making, such as ``round 1: pairs 400/2400``; empty between two stages."""
    record = {}
    with suppress(StorageError):  # it may be written at this moment, on a store that shows parts
        record = read_record(run)
    for number, stages in reversed(record.get("stages", {}).items()):
        for name, state in reversed(stages.items()):
            if state["status"] == "running":
                progress = state.get("progress", {})
                rows = f" {progress['rows']}/{progress['rows_in_all']}" if "rows_in_all" in progress else ""
                return f"{number.replace('-', ' ')}: {name}{rows}"
    return ""


def _error_of(driver: Driver) -> str:
    """The error that a driver printed last, or its last line."""
    content = driver.log.read_bytes().decode("utf-8", errors="replace")
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    found = (errors or lines or [f"the driver ended with exit code {driver.process.returncode}"])[-1]
    return found.removeprefix("error:").strip()[:MAX_ERROR]
