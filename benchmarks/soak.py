"""Random kills of workers, raylets and drivers; checks that nothing is lost, duplicated or changed.

    make soak                 (or: python benchmarks/soak.py [--rounds 4] [--seed 0])

A cluster of three raylets on this machine. Every command runs once undisturbed, then repeatedly with parts of it killed
at random moments (SIGKILL), and is restarted until it is done. Its tables must equal those of the undisturbed run:
every sample once, float32 captions and scores bit by bit. Takes about 50 minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kills import (
    KINDS,
    SETTINGS,
    Raylets,
    Trial,
    copied,
    differences,
    disturbed,
    on_a_full_disk,
    same_model,
    settings_at,
    training_on_a_disk_that_fills,
    undisturbed,
    without_its_path,
)
from measuring import command_line, publish

SHARDED = {"train": {**SETTINGS["train"], "zero_stage": 3}}


@dataclass(frozen=True)
class Case:
    """A kind of trial: a command, the stages that exist before it, the number of kills, and changed settings."""

    command: str
    before: tuple[str, ...]
    kills: int
    changes: dict[str, Any] = field(default_factory=dict)


STORAGE = "storage"
"""The cases with full disks and a path that disappears."""
SELECTED = ("samples", "pairs", "scored", "selected")
CASES = {
    "generate": Case("generate", (), 3),
    "score": Case("score", ("samples", "pairs"), 2),
    "train": Case("train", SELECTED, 2),
    "train, ZeRO-3": Case("train", SELECTED, 2, SHARDED),
    "run": Case("run", (), 4),
}


def main() -> None:
    """Measure, write and print."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="trials of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[*CASES, STORAGE], help="some of the cases")
    arguments = parser.parse_args()
    loads, trials = [os.getloadavg()[0]], []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        raylets = Raylets()
        try:
            trials = soak(Path(folder), raylets, arguments)
        finally:
            raylets.close()
    loads.append(os.getloadavg()[0])
    figures = {"seed": arguments.seed, "matrix": matrix(trials), "trials": [summary(trial) for trial in trials]}
    for line in figures["matrix"]:
        print(line)
    publish("soak" if arguments.only is None else "soak-part", {}, figures, loads)


def soak(folder: Path, raylets: Raylets, arguments: argparse.Namespace) -> list[Trial]:
    """Run all trials and compare each with the undisturbed run."""
    reference = folder / "undisturbed"
    file = settings_at(reference)
    seconds = {command: undisturbed(command, file, raylets.address) for command in ("generate", "score", "select")}
    seconds |= {command: undisturbed(command, file, raylets.address) for command in ("train", "evaluate")}
    seconds["run"] = sum(seconds.values())
    print({command: round(each) for command, each in seconds.items()}, flush=True)
    models = {False: reference, True: folder / "undisturbed-sharded"}
    undisturbed("train", copied(reference, models[True], SELECTED, **SHARDED), raylets.address)
    drawn, trials = random.Random(arguments.seed), []
    if arguments.only is None or STORAGE in arguments.only:
        for trial, path in storage_lost(folder, raylets, reference):
            trial.problems += differences(path, reference)
            if trial.command.startswith("train") and not same_model(path, reference):
                trial.problems.append("other weights")
            trials.append(printed(trial))
    for number in range(arguments.rounds):
        for name, case in CASES.items():
            if arguments.only is not None and name not in arguments.only:
                continue
            path = folder / f"{name}-{number}".replace(", ", "-")
            kinds = [drawn.choice(KINDS) for _ in range(case.kills)]
            file = copied(reference, path, case.before, **case.changes)
            trial = disturbed(case.command, file, raylets, kinds, seconds[case.command], drawn)
            trial.command = name
            trial.problems += differences(path, reference)
            if case.command in ("train", "run") and not same_model(path, models[bool(case.changes)]):
                trial.problems.append("other weights")
            trials.append(printed(trial))
    return trials


def storage_lost(folder: Path, raylets: Raylets, reference: Path) -> Iterator[tuple[Trial, Path]]:
    """Trials on full disks (which need root to mount) and with an output path that disappears, with their runs."""
    yield without_its_path(folder / "gone" / "run", raylets), folder / "gone" / "run"
    if os.geteuid() == 0:
        for disk, trial in (
            (folder / "disk", on_a_full_disk),
            (folder / "filling", partial(training_on_a_disk_that_fills, stages=reference)),
        ):
            try:
                yield trial(disk, raylets=raylets), disk / "run"
            finally:
                subprocess.run(["umount", "-l", disk], check=False)


def printed(trial: Trial) -> Trial:
    """Print a trial, with the output of its drivers if there are problems."""
    print(summary(trial), flush=True)
    if trial.problems:
        print(trial.output, flush=True)
    return trial


def summary(trial: Trial) -> dict[str, Any]:
    """A trial without the output of its drivers."""
    facts = asdict(trial)
    del facts["output"]
    return {**facts, "seconds": round(trial.seconds, 1)}


def matrix(trials: list[Trial]) -> list[dict[str, Any]]:
    """For each command: kills of each kind, drivers started, and problems."""
    rows = []
    for command in dict.fromkeys(trial.command for trial in trials):
        of = [trial for trial in trials if trial.command == command]
        kills = [kill["kind"] for trial in of for kill in trial.kills]
        rows.append(
            {
                "command": command,
                "trials": len(of),
                **{kind: kills.count(kind) for kind in KINDS},
                "drivers_started": sum(trial.drivers for trial in of),
                "problems": [problem for trial in of for problem in trial.problems],
            }
        )
    return rows


if __name__ == "__main__":
    main()
