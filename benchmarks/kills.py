"""A real cluster of several raylets on this machine, drivers on it, and ways to kill parts of either.

What ``soak.py`` and the tests of failures share.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from jsfree import config, schemas
from jsfree.run.folder import Folder
from ray_jobs.quiet import ENVIRONMENT

KINDS = ("worker", "raylet", "driver")
TABLES = {"pairs": schemas.PAIRS, "scored": schemas.SCORED, "selected": schemas.SELECTED}
SETTINGS: dict[str, Any] = {
    "rounds": 1,
    "shard_rows": 8,
    "source": {"count": 96},
    "generate": {"slots": 8, "resources": {"replicas": 2}},
    "score": {"resources": {"replicas": 2}},
    "select": {"first": 2, "last": 10},
    "train": {
        "pairs_per_step": 8,
        "pairs_per_worker": 4,
        "epochs": 1,
        "checkpoint_every": 2,
        "max_failures": 5,
        "resources": {"replicas": 2},
    },
    "evaluate": {"source": {"count": 16}, "modes": {"greedy": {}}, "bootstrap": 50},
}
"""A run of a minute: 12 shards, a dozen steps of training, checkpoints on the way."""
SWIFT = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""A lost node is noticed in seconds instead of half a minute."""
LOST = 5
"""Times that a driver may be started again in a trial, beyond those that were killed."""


class Raylets:
    """A head that takes no work, and two nodes that do."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        os.environ.update({**SWIFT, **ENVIRONMENT})
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._nodes = [self._cluster.add_node(num_cpus=2) for _ in range(2)]

    @property
    def address(self) -> str:
        """What drivers join."""
        return str(self._cluster.address)

    def kill_one(self, drawn: random.Random) -> bool:
        """Kill a raylet that takes work, and have another one join."""
        node = self._nodes.pop(drawn.randrange(len(self._nodes)))
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self._nodes.append(self._cluster.add_node(num_cpus=2))
        self._cluster.remove_node(node, allow_graceful=False)
        return True

    def workers(self) -> list[psutil.Process]:
        """Processes that do a stage's work."""
        found = []
        for node in self._nodes:
            for process in psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True):
                with suppress(psutil.Error):  # it may have ended meanwhile
                    if process.cmdline() and process.cmdline()[0].startswith(("ray::MapWorker", "ray::RayTrainWorker")):
                        found.append(process)
        return found

    def close(self) -> None:
        """End all of it."""
        self._cluster.shutdown()


@dataclass
class Trial:
    """What happened to one command."""

    command: str
    kills: list[dict[str, Any]] = field(default_factory=list)
    drivers: int = 0
    """How many it took."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    output: str = ""


def settings_at(path: Path, **changes: Any) -> Path:
    """A configuration file for a run at ``path``."""
    made = config.build({"run": str(path), **SETTINGS, **changes}, where="kills")
    file = path.parent / f"{path.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(made.to_yaml(), encoding="utf-8")
    return file


def start(command: str, file: Path, address: str | None) -> subprocess.Popen[str]:
    """A driver, in a process group of its own."""
    where = {"RAY_ADDRESS": address} if address else {}
    return subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.cli", command, "--config", str(file)],
        env={**os.environ, **where},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def undisturbed(command: str, file: Path, address: str) -> float:
    """Run a command to its end; its seconds.

    Raises:
        RuntimeError: it failed.
    """
    started = time.monotonic()
    driver = start(command, file, address)
    output, _ = driver.communicate(timeout=600)
    if driver.returncode:
        raise RuntimeError(f"{command} failed without being disturbed:\n{output}")
    return time.monotonic() - started


def disturbed(
    command: str, file: Path, raylets: Raylets, kinds: Sequence[str], within: float, drawn: random.Random
) -> Trial:
    """Run a command, kill parts of it at random moments, and start it again until it is done."""

    def at_random() -> Callable[[], bool]:
        moment = time.monotonic() + drawn.uniform(0.2, 1.0) * within / len(kinds)
        return lambda: time.monotonic() >= moment

    return _disturbed(command, file, raylets, [(kind, at_random) for kind in kinds], drawn)


def disturbed_after(
    command: str, file: Path, raylets: Raylets, kinds: Mapping[int, str], count: Callable[[], int]
) -> Trial:
    """The same, each kind when there is so much of what is counted."""

    def after(enough: int) -> Callable[[], Callable[[], bool]]:
        return lambda: lambda: count() >= enough

    return _disturbed(
        command, file, raylets, [(kind, after(enough)) for enough, kind in kinds.items()], random.Random(0)
    )


def _disturbed(
    command: str,
    file: Path,
    raylets: Raylets,
    kills: Sequence[tuple[str, Callable[[], Callable[[], bool]]]],
    drawn: random.Random,
) -> Trial:
    trial = Trial(command)
    started, waiting = time.monotonic(), list(kills)
    while trial.drivers <= len(kills) + LOST:
        driver = start(command, file, raylets.address)
        trial.drivers += 1
        while waiting:
            kind, when = waiting[0]
            if not _runs_until(driver, when()):
                break
            if _kill(kind, driver, raylets, drawn):
                waiting.pop(0)
                trial.kills.append({"kind": kind, "second": round(time.monotonic() - started, 1)})
        output, _ = driver.communicate(timeout=600)
        trial.output += output
        if driver.returncode == 0:
            break
    else:
        trial.problems.append("it never ended well")
    trial.seconds = time.monotonic() - started
    return trial


def on_a_full_disk(disk: Path, raylets: Raylets) -> Trial:
    """Generate onto a disk that is too small, and again once it is larger (needs root)."""
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=220k", "tmpfs", disk], check=True)
    file = settings_at(disk / "run")
    return _twice(
        "generate, full disk",
        lambda: start("generate", file, raylets.address),
        lambda: None,
        lambda: subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True),
        "No space left on device",
    )


def without_its_path(path: Path, raylets: Raylets) -> Trial:
    """Generate into a folder that is taken away while workers write, and again once it is back."""
    file, kept = settings_at(path), path.with_name("kept")

    def take_away() -> None:
        while not Folder(f"{path}/round-1/pairs").shards():
            time.sleep(0.05)
        path.rename(kept)
        path.touch()  # nothing can be written below a file

    def bring_back() -> None:
        path.unlink()
        kept.rename(path)

    return _twice(
        "generate, path gone", lambda: start("generate", file, raylets.address), take_away, bring_back, str(path)
    )


def training_on_a_disk_that_fills(disk: Path, stages: Path, raylets: Raylets) -> Trial:
    """Train while something else fills the disk, and again once that is gone (needs root)."""
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", disk], check=True)
    file = copied(stages, disk / "run", ("samples", "pairs", "scored", "selected"))
    log, filler = Folder(f"{disk}/run/round-1/train"), disk / "filler"

    def fill() -> None:
        while not (log.exists("steps.json") and len(log.read_json("steps.json")) >= 3):
            time.sleep(0.05)
        with suppress(OSError), filler.open("wb") as out:
            while True:
                out.write(bytes(2**20))

    return _twice(
        "train, full disk",
        lambda: start("train", file, raylets.address),
        fill,
        filler.unlink,
        "No space left on device",
    )


def _twice(
    what: str,
    begin: Callable[[], subprocess.Popen[str]],
    meanwhile: Callable[[], object],
    mend: Callable[[], object],
    expected: str,
) -> Trial:
    """A driver that must fail with one error line that says what is expected, and another one that must not."""
    trial, started = Trial(what), time.monotonic()
    failing = begin()
    meanwhile()
    trial.output, _ = failing.communicate(timeout=300)
    if failing.returncode != 1 or expected not in trial.output or "Traceback" in trial.output:
        trial.problems.append(f"ended with {failing.returncode} and another error than {expected!r}")
    mend()
    going_on = begin()
    trial.output += going_on.communicate(timeout=300)[0]
    if going_on.returncode:
        trial.problems.append("did not go on")
    trial.drivers, trial.seconds = 2, time.monotonic() - started
    return trial


def differences(found: Path, expected: Path) -> list[str]:
    """What is wrong with a run, as against one that was not disturbed: lost, twice, or other data."""
    problems = []
    for name, schema in TABLES.items():
        there, wanted = (Folder(f"{path}/round-1/{name}") for path in (found, expected))
        if not there.exists("_manifest.json"):
            continue
        rows, right = there.read_shards(schema), wanted.read_shards(schema)
        ids, all_ids = rows["sample_id"].to_pylist(), right["sample_id"].to_pylist()
        problems += [f"{name}: {each} is there twice" for each in {each for each in ids if ids.count(each) > 1}]
        problems += [f"{name}: {each} is lost" for each in set(all_ids) - set(ids)]
        if not problems and not rows.equals(right):
            problems.append(f"{name}: other data")
    leftover = Folder(f"{found}/round-1/attempts").names()
    problems += [
        f"attempts of {each} are left" for each in leftover if Folder(f"{found}/round-1/attempts/{each}").names()
    ]
    return problems


def same_model(found: Path, expected: Path) -> bool:
    """Whether two runs trained the same weights, bit by bit."""
    sums = [Folder(f"{path}/round-1/model").read_json("checksums.json") for path in (found, expected)]
    return bool(sums[0] == sums[1])


def copied(source: Path, target: Path, stages: Sequence[str], **changes: Any) -> Path:
    """A run with the first stages of another; its configuration file."""
    for stage in stages:
        shutil.copytree(source / "round-1" / stage, target / "round-1" / stage)
    return settings_at(target, **changes)


def _runs_until(driver: subprocess.Popen[str], due: Callable[[], bool]) -> bool:
    while True:
        time.sleep(0.05)
        if driver.poll() is not None:
            return False
        if due():
            return True


def _kill(kind: str, driver: subprocess.Popen[str], raylets: Raylets, drawn: random.Random) -> bool:
    """Kill something of a kind; False where there is none now."""
    if kind == "raylet":
        return raylets.kill_one(drawn)
    if kind == "driver":
        driver.kill()
        return True
    workers = raylets.workers()
    if not workers:
        return False
    with suppress(psutil.Error):  # it may have ended meanwhile
        drawn.choice(workers).kill()
        return True
    return False
