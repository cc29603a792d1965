"""A simulation: how a stage's shards spread over up to 16 nodes, when no node computes anything.

    python benchmarks/scaling.py --part simulated [--nodes 1 2 4 8 16] [--seconds 45] [--samples 100000] \
        [--shard-rows 128]

What is real: ``run_shards``, Ray Data, raylets (all on one machine, one actor a node), the files of every shard, the
loss of a node. What is simulated: the device. An actor sleeps for as long as a GPU would take over a shard, one
shard at a time however many it has under way, with lognormal variation. The time is that which an H200 is
estimated to need for LLaVA-1.5-13B, compressed: for every number of nodes by another factor, so that each run would
take ``--seconds`` at best. Compression makes whatever is not the device's time look larger than it would be: shards
come that many times as often, while drivers, raylets and actors have two cores among them instead of some a node.

Actors wait for each other before the first shard: on one machine they start one after another, on a cluster they do
not. What the start takes is told apart (``first_row_seconds``, ``efficiency_from_start``). It is not compressed, and
neither is the time in which a lost node is noticed and an actor is started in its place: beside runs of ``--seconds``
they weigh as many times as much as the factor says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
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
"""Captions that an H200 has in flight; how many shards an actor has under way follows from it."""
H200_SECONDS = 1.9 * 3600 / 100_000
"""Estimated for two captions of 130 tokens of an image by LLaVA-1.5-13B on one H200."""
SIGMA = 0.1
"""Of a shard's time. 128 pairs of captions would have 0.03 from their lognormal lengths alone."""
MUST, GOAL = 0.90, 0.97
PATIENCE = 300.0


@dataclass(frozen=True)
class Plan:
    """How long the device takes over each shard."""

    seconds_a_row: float
    seed: int

    def seconds(self, shard: int, rows: int) -> float:
        """Lognormal around its mean, the same wherever the shard runs."""
        drawn = np.random.default_rng([self.seed, shard]).normal(-(SIGMA**2) / 2, SIGMA)
        return self.seconds_a_row * rows * float(np.exp(drawn))


class Sleeper:
    """A stage class whose device is a clock; notes when each shard was asked for, begun and ended."""

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
        self._note(shard=shard, asked=time.monotonic())
        with self._device:
            begun = time.monotonic()
            time.sleep(self._plan.seconds(shard, len(rows)))
            self._note(shard=shard, begun=begun, ended=time.monotonic())
        return StageOutput(rows=list(rows))

    def _note(self, **what: float) -> None:
        self._notes.write(json.dumps(what) + "\n")


@dataclass(frozen=True)
class LogicalStage(ShardedStage):
    """A stage whose GPUs are only counted: its class is built without one."""

    def build(self) -> StageCall:
        return self.stage_class(**self.arguments, device="cpu")


class TimedCounts(Counts):
    """Counts that also keep when each receipt came."""

    def __init__(self, rows_in_all: int) -> None:
        super().__init__(rows_in_all)
        self.times: list[float] = []

    def add(self, rows: int, failed: int, tokens: int) -> None:
        self.times.append(time.monotonic())
        super().add(rows, failed, tokens)


class DriverWatch:
    """What the driver's process takes: CPU seconds and memory; and how busy the whole machine is meanwhile."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look several times a second until the block ends."""
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
        """Samples of each shard; their ids say which it is."""
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
        """Where actors note when they did what."""
        return self.work / "notes"

    def stage(self) -> ShardedStage:
        """The stage, with its source written."""
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
    """All numbers of nodes, the largest several times, and once more with a node that is lost in the middle."""
    from ray.cluster_utils import Cluster as Raylets

    # Raylets would start a worker a logical CPU beforehand, and their agents have nobody to report to.
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
        f"efficiency_{nodes}_nodes": spread([each["efficiency"] for each in found]) for nodes, found in tried.items()
    }
    if lost:
        ratios[f"efficiency_{counts[-1]}_nodes_one_lost"] = spread([lost["efficiency"]])
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
    """A trial that would take ``--seconds`` at best."""
    plan = Plan(arguments.seconds * nodes / arguments.samples, number)
    return Trial(nodes, arguments.samples, arguments.shard_rows, plan, folder / f"{nodes}-{number}")


def run(trial: Trial, board: Any, show: Callable[[Figures], None] = lambda _: None) -> dict[str, float]:
    """Run a trial; where its time went. The shares add up to 1."""
    stage, counts, watch = trial.stage(), TimedCounts(trial.samples), DriverWatch()
    with watch.watching():
        started = time.monotonic()
        run_shards([stage], board, counts, show)
    _all_given_back(trial.nodes)
    _require_each_once(stage, trial)
    actors = [[each for each in notes if "ended" in each] for notes in notes_of(trial)]
    actors = [sorted(each, key=lambda note: note["begun"]) for each in actors if each]
    first, last = min(each[0]["begun"] for each in actors), counts.times[-1]
    room = trial.nodes * (last - first)
    slept = sum(note["ended"] - note["begun"] for notes in actors for note in notes)
    active = sum(notes[-1]["ended"] - notes[0]["begun"] for notes in actors)
    return {
        "efficiency": trial.planned / room,
        "efficiency_from_start": trial.planned / (trial.nodes * (last - started)),
        "share_waited_for_first_shard": sum(notes[0]["begun"] - first for notes in actors) / room,
        "share_waited_between_shards": (active - slept) / room,
        "share_waited_at_end": sum(last - notes[-1]["ended"] for notes in actors) / room,
        "share_overslept": (slept - trial.planned) / room,
        "compression": H200_SECONDS / trial.plan.seconds_a_row,
        "seconds": last - first,
        "ideal_seconds": trial.planned / trial.nodes,
        "first_row_seconds": counts.times[0] - started,
        "tail_seconds": last - min(notes[-1]["ended"] for notes in actors),
        "shard_seconds": trial.planned / len(trial.shards),
        **watch.figures,
    }


def run_with_loss(trial: Trial, board: Any, raylets: Any) -> dict[str, float]:
    """Run a trial in which a node is killed when 40 % of the rows are done; compared with what its nodes could do.

    No other node has room for the actor that is lost. Its shards are begun again by whoever does them then.
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
    asked: dict[float, list[float]] = {}
    for note in notes:
        if "asked" in note:
            asked.setdefault(note["shard"], []).append(note["asked"])
    again = [max(times) for times in asked.values() if len(times) > 1]
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
    """What each actor noted."""
    return [
        list(map(json.loads, file.read_text(encoding="utf-8").splitlines()))
        for file in sorted(trial.notes.glob("*.jsonl"))
    ]


def spread(values: list[float]) -> dict[str, float]:
    """An efficiency over repetitions, with what is asked of it."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "target": MUST}


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """As it is printed."""
    return {key: round(value, 3) for key, value in figures.items()}


def _require_each_once(stage: ShardedStage, trial: Trial) -> None:
    found = Folder(stage.target.uri).read_shards(ROWS)["sample_id"].to_pylist()
    if sorted(found) != [name for names in trial.shards for name in names]:
        raise SystemExit(f"{len(found)} rows, {len(set(found))} of them distinct, of {trial.samples} samples")


def _all_given_back(nodes: int) -> None:
    """Wait until the actors of a run have left their nodes."""
    import gc

    import ray

    gc.collect()
    deadline = time.monotonic() + PATIENCE
    while ray.available_resources().get("GPU", 0) < ray.cluster_resources().get("GPU", 0):
        if time.monotonic() > deadline:
            raise TimeoutError(f"actors of {nodes} nodes do not end")
        time.sleep(0.2)
