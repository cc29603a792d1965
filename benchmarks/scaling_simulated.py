"""A simulation of a stage's shards on up to 16 nodes, in which actors sleep instead of computing.

    python benchmarks/scaling.py --part simulated [--nodes 1 2 4 8 16] [--seconds 45] [--samples 100000] \
        [--shard-rows 128]

Real are ``run_shards``, Ray Data, raylets (all on one machine, one actor a node), the files of every shard and the loss
of a node. Simulated is the device: an actor sleeps for as long as a GPU would take for a shard, one shard at a time,
with lognormal variation. The time is the estimate for LLaVA-1.5-13B on an H200, compressed by a factor for each number
of nodes such that a run without overhead would take ``--seconds``. Compression exaggerates all overhead: shards come
that many times as often, while drivers, raylets and actors share two cores instead of having some on every node.

Actors wait for each other before the first shard, since on one machine, unlike on a cluster, they start one after
another. The start is reported separately (``first_row_seconds``, ``efficiency_from_start``). Neither it nor the time to
notice a lost node and to replace its actor is compressed, so compared with runs of ``--seconds`` they are exaggerated
by the same factor.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from measuring import spread

from jsfree.config import Resources, RunConfig
from jsfree.run.folder import Folder, shard_name
from jsfree.schemas import StageOutput
from ray_jobs.cluster.session import Cluster
from ray_jobs.quiet import ENVIRONMENT
from ray_jobs.shards.actor import ShardedStage, StageCall
from ray_jobs.shards.progress import Counts, Figures
from ray_jobs.shards.runner import run_shards
from ray_jobs.shards.tables import Table
from ray_jobs.stages.generate import shards_in_flight

ROWS = pa.schema([("sample_id", pa.string())])
SLOTS = 220
"""Captions in flight on an H200, which determine the number of shards in progress on an actor."""
H200_SECONDS = 1.9 * 3600 / 100_000
"""Estimated seconds per image for two captions of 130 tokens by LLaVA-1.5-13B on one H200."""
SIGMA = 0.1
"""Lognormal spread of a shard's time; lognormal lengths alone would give 128 pairs of captions 0.03."""
MUST, GOAL = 0.90, 0.97
PATIENCE = 300.0


@dataclass(frozen=True)
class Plan:
    """Simulated device time of each shard."""

    seconds_a_row: float
    seed: int

    def seconds(self, shard: int, rows: int) -> float:
        """Lognormal seconds of a shard, the same on every node."""
        drawn = np.random.default_rng([self.seed, shard]).normal(-(SIGMA**2) / 2, SIGMA)
        return self.seconds_a_row * rows * float(np.exp(drawn))


class Sleeper:
    """A stage class that sleeps; records when each shard was submitted, started and finished."""

    def __init__(self, plan: Plan, notes: str, crowd: int, device: str) -> None:  # noqa: ARG002 - as all have
        self._plan = plan
        self._device = threading.Lock()
        here = Path(notes) / f"{os.getpid()}.jsonl"
        here.touch()
        self._notes = here.open("a", buffering=1)
        deadline = time.monotonic() + PATIENCE
        while len(list(here.parent.iterdir())) < crowd:
            if time.monotonic() > deadline:
                raise TimeoutError(f"fewer than {crowd} actors came")
            time.sleep(0.05)

    def __call__(self, rows: Any) -> StageOutput:
        shard = int(rows[0]["sample_id"].partition("/")[0])
        self._note(shard=shard, submitted=time.monotonic())
        with self._device:
            begun = time.monotonic()
            time.sleep(self._plan.seconds(shard, len(rows)))
            self._note(shard=shard, begun=begun, ended=time.monotonic())
        return StageOutput(rows=list(rows))

    def _note(self, **what: float) -> None:
        self._notes.write(json.dumps(what) + "\n")


@dataclass(frozen=True)
class LogicalStage(ShardedStage):
    """A stage whose GPUs are logical only: its class is built for the CPU."""

    def build(self) -> StageCall:
        return self.stage_class(**self.arguments, device="cpu")


class TimedCounts(Counts):
    """Counts that also record the time of each receipt."""

    def __init__(self, rows_in_all: int) -> None:
        super().__init__(rows_in_all)
        self.times: list[float] = []

    def add(self, rows: int, failed: int, tokens: int) -> None:
        self.times.append(time.monotonic())
        super().add(rows, failed, tokens)


class DriverWatch:
    """CPU seconds and memory of the driver's process, and the load of the whole machine meanwhile."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample five times a second until the end of the block."""
        ended, process = threading.Event(), psutil.Process()
        seen = [process.memory_info().rss]

        def look() -> None:
            while not ended.wait(0.2):
                seen.append(process.memory_info().rss)

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        cpu = time.process_time()
        psutil.cpu_percent()
        try:
            yield
        finally:
            ended.set()
            looking.join()
        self.figures = {
            "driver_cpu_seconds": time.process_time() - cpu,
            "driver_mb_before": seen[0] / 1e6,
            "driver_mb_most": max(seen) / 1e6,
            "driver_mb_after": process.memory_info().rss / 1e6,
            "machine_busy_percent": psutil.cpu_percent(),
        }


@dataclass(frozen=True)
class Trial:
    """One run of the simulated stage."""

    nodes: int
    samples: int
    shard_rows: int
    plan: Plan
    work: Path

    @property
    def shards(self) -> list[list[str]]:
        """Sample ids of each shard, which contain its number."""
        starts = enumerate(range(0, self.samples, self.shard_rows))
        size = self.shard_rows
        return [
            [f"{shard:05d}/{row:06d}" for row in range(start, min(start + size, self.samples))]
            for shard, start in starts
        ]

    @property
    def planned(self) -> float:
        """Device seconds of all shards."""
        return sum(self.plan.seconds(shard, len(rows)) for shard, rows in enumerate(self.shards))

    @property
    def notes(self) -> Path:
        """Folder of the actors' records."""
        return self.work / "notes"

    def stage(self) -> ShardedStage:
        """Write the source and return the stage."""
        self.notes.mkdir(parents=True)
        source = Folder(f"{self.work}/source")
        for shard, names in enumerate(self.shards):
            source.write_table(shard_name(shard), pa.table({"sample_id": names}, schema=ROWS))
        return LogicalStage(
            name="simulated",
            source=source.uri,
            source_schema=ROWS,
            target=Table(f"{self.work}/target", ROWS, f"{self.work}/errors"),
            stage_class=Sleeper,
            arguments={"plan": self.plan, "notes": str(self.notes), "crowd": self.nodes},
            resources=Resources(replicas=self.nodes, cpus=1, gpus=1),
            attempts=f"{self.work}/attempts",
            shards_in_flight=shards_in_flight(RunConfig(shard_rows=self.shard_rows, generate={"slots": SLOTS})),
        )


def simulated(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run all numbers of nodes, the largest several times, and once more with the loss of a node."""
    from ray.cluster_utils import Cluster as Raylets

    # Without this, raylets start a worker per logical CPU in advance.
    os.environ.update(ENVIRONMENT, RAY_enable_worker_prestart="0", RAY_prestart_worker_first_driver="0")
    counts = sorted(arguments.nodes)
    tried: dict[int, list[dict[str, float]]] = {}
    raylets = Raylets(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, "dashboard_port": 0}
    )
    try:
        with Cluster(RunConfig(ray={"address": raylets.address})) as session, TemporaryDirectory() as folder:
            session.ensure()
            for nodes in counts:
                while len(raylets.worker_nodes) < nodes:
                    raylets.add_node(num_cpus=8, num_gpus=1)
                for number in range(arguments.repeat if nodes == counts[-1] else 1):
                    trial = planned(nodes, arguments, number, Path(folder))
                    tried.setdefault(nodes, []).append(run(trial, session.board))
                    print(f"simulated, {nodes} nodes:", rounded(tried[nodes][-1]), flush=True)
            lost = {}
            if arguments.lose:
                trial = planned(counts[-1], arguments, arguments.repeat, Path(folder))
                lost = run_with_loss(trial, session.board, raylets)
                print(f"simulated, {trial.nodes} nodes, one lost:", rounded(lost), flush=True)
    finally:
        raylets.shutdown()
    ratios = {
        f"efficiency_{nodes}_nodes": spread([run["efficiency"] for run in found], MUST)
        for nodes, found in tried.items()
    }
    if lost:
        ratios[f"efficiency_{counts[-1]}_nodes_one_lost"] = spread([lost["efficiency"]], MUST)
    figures = {
        "what": "SIMULATED: actors sleep instead of computing, all nodes are on this machine, time is compressed",
        "samples": arguments.samples,
        "shard_rows": arguments.shard_rows,
        "goal_at_most_nodes": GOAL,
        **{f"{nodes} nodes": found for nodes, found in tried.items()},
        f"{counts[-1]} nodes, one lost": lost,
    }
    return ratios, figures


def planned(nodes: int, arguments: argparse.Namespace, number: int, folder: Path) -> Trial:
    """A trial that would take ``--seconds`` without overhead."""
    plan = Plan(arguments.seconds * nodes / arguments.samples, number)
    return Trial(nodes, arguments.samples, arguments.shard_rows, plan, folder / f"{nodes}-{number}")


def run(trial: Trial, board: Any, show: Callable[[Figures], None] = lambda _: None) -> dict[str, float]:
    """Run a trial; efficiency and shares of the time, which add up to 1."""
    stage, counts, watch = trial.stage(), TimedCounts(trial.samples), DriverWatch()
    with watch.watching():
        started = time.monotonic()
        run_shards([stage], board, counts, show)
    _wait_for_free_gpus(trial.nodes)
    _check_every_sample_once(stage, trial)
    actors = [[each for each in notes if "ended" in each] for notes in notes_of(trial)]
    actors = [sorted(each, key=lambda note: note["begun"]) for each in actors if each]
    first, last = min(each[0]["begun"] for each in actors), counts.times[-1]
    node_seconds = trial.nodes * (last - first)
    slept = sum(note["ended"] - note["begun"] for notes in actors for note in notes)
    active = sum(notes[-1]["ended"] - notes[0]["begun"] for notes in actors)
    return {
        "efficiency": trial.planned / node_seconds,
        "efficiency_from_start": trial.planned / (trial.nodes * (last - started)),
        "share_waited_for_first_shard": sum(notes[0]["begun"] - first for notes in actors) / node_seconds,
        "share_waited_between_shards": (active - slept) / node_seconds,
        "share_waited_at_end": sum(last - notes[-1]["ended"] for notes in actors) / node_seconds,
        "share_overslept": (slept - trial.planned) / node_seconds,
        "compression": H200_SECONDS / trial.plan.seconds_a_row,
        "seconds": last - first,
        "ideal_seconds": trial.planned / trial.nodes,
        "first_row_seconds": counts.times[0] - started,
        "tail_seconds": last - min(notes[-1]["ended"] for notes in actors),
        "shard_seconds": trial.planned / len(trial.shards),
        **watch.figures,
    }


def run_with_loss(trial: Trial, board: Any, raylets: Any) -> dict[str, float]:
    """Run a trial in which a node is killed after 40 % of the rows; compared with the ideal time of its nodes.

    No other node has resources for the lost actor, so other actors repeat its shards.
    """
    import ray

    killed: list[float] = []
    noticed: list[float] = []

    def kill(figures: Figures) -> None:
        if figures.rows >= 0.4 * trial.samples and not killed:
            killed.append(time.monotonic())
            raylets.remove_node(next(iter(raylets.worker_nodes)), allow_graceful=False)
        elif killed and not noticed and sum(node["Alive"] for node in ray.nodes()) == trial.nodes:  # with the head
            noticed.append(time.monotonic())

    found = run(trial, board, kill)
    notes = [note for each in notes_of(trial) for note in each]
    ended = [note["shard"] for note in notes if "ended" in note]
    submitted: dict[float, list[float]] = {}
    for note in notes:
        if "submitted" in note:
            submitted.setdefault(note["shard"], []).append(note["submitted"])
    again = [max(times) for times in submitted.values() if len(times) > 1]
    others = [note["ended"] for note in notes if "ended" in note and note["ended"] < min(again, default=0.0)]
    before = killed[0] - min(note["begun"] for note in notes if "begun" in note)
    ideal = (trial.planned - before) / (trial.nodes - 1)  # n nodes until then, and n - 1 afterwards
    kept = ("seconds", "driver_cpu_seconds", "driver_mb_most", "machine_busy_percent", "compression")
    return {
        "efficiency": ideal / found["seconds"],
        "ideal_seconds": ideal,
        "killed_after_seconds": before,
        "noticed_seconds_later": noticed[0] - killed[0] if noticed else float("nan"),
        "shards_begun_again": len(again),
        "shards_begun_again_seconds_later": max(again, default=0.0) - killed[0],
        "nothing_ran_before_that_for_seconds": min(again, default=0.0) - max(others, default=0.0),
        "shards_ended_twice": len(ended) - len(set(ended)),
        "processes_more": len(notes_of(trial)) - trial.nodes,
        **{key: found[key] for key in kept},
    }


def notes_of(trial: Trial) -> list[list[dict[str, float]]]:
    """The records of each actor."""
    return [
        list(map(json.loads, file.read_text(encoding="utf-8").splitlines()))
        for file in sorted(trial.notes.glob("*.jsonl"))
    ]


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Figures rounded for printing."""
    return {key: round(value, 3) for key, value in figures.items()}


def _check_every_sample_once(stage: ShardedStage, trial: Trial) -> None:
    found = Folder(stage.target.uri).read_shards(ROWS)["sample_id"].to_pylist()
    if sorted(found) != [name for names in trial.shards for name in names]:
        raise SystemExit(f"{len(found)} rows, {len(set(found))} of them distinct, of {trial.samples} samples")


def _wait_for_free_gpus(nodes: int) -> None:
    """Wait until the actors of a run have released their GPUs."""
    import gc

    import ray

    gc.collect()
    deadline = time.monotonic() + PATIENCE
    while ray.available_resources().get("GPU", 0) < ray.cluster_resources().get("GPU", 0):
        if time.monotonic() > deadline:
            raise TimeoutError(f"actors of {nodes} nodes do not end")
        time.sleep(0.2)
