"""The order of an ablation's runs: which runs can share stages, and which run may start next.

Runs with equal fingerprints of a stage share it: the first of them in the order makes it, the others take it over
(``jsfree.run.reuse``). A run starts once all stages up to training that it will take over are finished; for those of
the evaluation it waits itself. This only saves time: what a run takes over is decided by the files of the other run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from jsfree import config as configuration
from jsfree.ablation.definition import Ablation
from jsfree.ablation.results import run_path
from jsfree.config import RunConfig
from jsfree.errors import RunError
from jsfree.evaluation.rounds_stop import last_round
from jsfree.run.folder import Folder
from jsfree.run.reuse import excludes_evaluation_images
from jsfree.run.run import CONFIG, INPUTS, Run, stored_config
from jsfree.run.stages import LABEL_FREE, LAST_STAGE, part_of
from ray_jobs.ablation.planning import Stage, plan_fingerprints

State = Literal["waiting", "running", "done", "failed"]
Key = tuple[int, str, str, str]
"""Everything that a stage depends on: round, name, its fingerprint, and that of the evaluation set if it matters."""


@dataclass(frozen=True)
class Task:
    """A run of an ablation: one cell with one seed, and the fingerprints of all its stages."""

    cell: str
    seed: int
    config: RunConfig
    fingerprints: dict[Stage, str] = field(repr=False)

    @property
    def name(self) -> str:
        """The name that users see."""
        return f"{self.cell}, seed {self.seed}"

    @property
    def log(self) -> str:
        """The file with the output of the run's drivers."""
        return f"{self.config.run}.log"

    @cached_property
    def keys(self) -> dict[Key, Stage]:
        """The stages of the run by everything that they depend on."""
        evaluation = self.fingerprints.get((1, "evaluation"), "")
        return {
            (number, name, fingerprint, evaluation if excludes_evaluation_images(name) else ""): (number, name)
            for (number, name), fingerprint in self.fingerprints.items()
        }

    def has_finished(self, stage: Stage) -> bool:
        """Whether the run's folder holds a finished stage with the expected inputs."""
        manifest = Run(self.config).manifest(*stage)
        return manifest is not None and manifest.fingerprint == self.fingerprints[stage]

    def is_done(self) -> bool:
        """Whether all stages, up to the round in which a stop rule ended the run, and the report are finished."""
        folder = Folder(self.config.run)
        last = last_round(Run(self.config))
        ends = (f"round-{last}/{LABEL_FREE}", "report/index.html")
        stages = [stage for stage in self.fingerprints if stage[0] <= last]
        return all(folder.exists(name) for name in ends) and all(map(self.has_finished, stages))

    def check_inputs(self) -> None:
        """Check that the run's folder holds no stages with other settings.

        Raises:
            RunError: a stage was made with other settings.
        """
        run = Run(self.config)
        if not run.folder.exists(CONFIG):
            return
        for (number, name), expected in self.fingerprints.items():
            folder = run.stage(number, name)
            if folder.exists(INPUTS) and folder.read_json(INPUTS)["fingerprint"] != expected:
                changed = configuration.differences(stored_config(run.folder), self.config)
                raise RunError(
                    f"{run.folder.uri}: stage {name!r} of round {number} was made with other settings"
                    f" ({'; '.join(changed[:4]) or 'an earlier stage was redone'})",
                    "choose another folder with --out, or remove this run",
                )


def tasks_of(ablation: Ablation, out: Folder) -> list[Task]:
    """The runs of an ablation in the folder ``out``, in order: all cells with the first seed, with the second...

    Each run may reuse stages of the runs before it with which it shares any.

    Raises:
        ConfigError: the settings of a cell are invalid.
    """
    tasks: list[Task] = []
    for seed in ablation.seeds:
        for cell in ablation.cells:
            config = ablation.config(cell, seed, (out / run_path(cell.name, seed)).uri)
            task = Task(cell.name, seed, config, plan_fingerprints(config))
            sources = [earlier.config.run for earlier in tasks if earlier.keys.keys() & task.keys.keys()]
            config = config.model_copy(update={"reuse": tuple(sources)})
            tasks.append(Task(cell.name, seed, config, task.fingerprints))
    return tasks


def makers(tasks: Sequence[Task], position: int) -> dict[Stage, Task]:
    """The stages that a task takes over, each with the task that makes it if none fails."""
    own = tasks[position].keys
    shared: dict[Stage, Task] = {}
    for earlier in tasks[:position]:
        for key in own.keys() & earlier.keys.keys():
            shared.setdefault(own[key], earlier)
    return {stage: shared[stage] for stage in tasks[position].fingerprints if stage in shared}


def next_task(
    tasks: Sequence[Task], states: Sequence[State], has_finished: Callable[[Task, Stage], bool]
) -> int | None:
    """Position of the first waiting task that may start; None if there is none.

    A task waits for a stage up to training while an earlier task that has not ended will make it. The first waiting
    task waits only for running ones, so there is no deadlock.
    """
    for position, state in enumerate(states):
        if state == "waiting" and not _is_blocked(tasks, states, position, has_finished):
            return position
    return None


def _is_blocked(
    tasks: Sequence[Task], states: Sequence[State], position: int, has_finished: Callable[[Task, Stage], bool]
) -> bool:
    for key, stage in tasks[position].keys.items():
        part = part_of(stage[1])
        if part is None or part.stage == LAST_STAGE:
            continue
        having = [number for number in range(position) if key in tasks[number].keys]
        expected = any(states[number] in ("waiting", "running") for number in having)
        if expected and not any(has_finished(tasks[number], stage) for number in having):
            return True
    return False
