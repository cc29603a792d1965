"""Placement of stages on a real cluster with logical GPUs, which grows from one node to three.

The stage class of these tests computes nothing. It records the GPUs and the node that Ray assigned to each replica.
"""

import gc
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from jsfree import config, schemas
from jsfree.checks.findings import Verdict
from jsfree.config import Resources
from jsfree.errors import StageError
from jsfree.run.folder import Folder, shard_name
from jsfree.run.run import Run
from jsfree.schemas import StageOutput
from jsfree.stages.captioning import PairGenerator
from ray_jobs.cluster import session as clusters
from ray_jobs.cluster.capacity import check_capacity
from ray_jobs.cluster.nodes import add_new_nodes
from ray_jobs.commands.console import Reporter
from ray_jobs.commands.preflight import preflight
from ray_jobs.rounds import Model, Round
from ray_jobs.shards.actor import ShardedStage
from ray_jobs.shards.board import start_board
from ray_jobs.shards.progress import Counts, Figures
from ray_jobs.shards.runner import run_shards
from ray_jobs.shards.tables import Table
from ray_jobs.stages.generate import generate_pairs, list_samples
from ray_jobs.stages.train import scaling

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

NUMBERS = pa.schema([("number", pa.int64())])
PATIENCE = 90.0
BOX_GPUS = 8


@pytest.fixture(scope="module")
def box() -> Iterator[object]:
    """A cluster of one node with 8 (logical) A100."""
    import ray
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    grown = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "num_gpus": BOX_GPUS, "resources": {"accelerator_type:A100": 1}},
    )
    with clusters.Cluster(config.RunConfig(ray={"address": grown.address})) as session:
        session.ensure()
        yield grown
    ray.shutdown()
    grown.shutdown()


@dataclass(frozen=True)
class LogicalStage(ShardedStage):
    """A stage whose GPUs are only logical: its class is built on the CPU."""

    def build(self):
        return self.stage_class(**self.arguments, device="cpu")


class Notes:
    """Records its replica's resources once ``crowd`` replicas are running. Later shards wait for a second replica."""

    def __init__(self, folder: str, crowd: int, left: int | None, device: str) -> None:
        self.folder = Path(folder)
        note_share(self.folder, crowd, left)

    def __call__(self, rows):
        import ray

        if rows[0]["number"] < 0:
            raise ValueError("a stage that fails")
        if rows[0]["number"] >= 8:
            until(lambda: len(list(self.folder.glob("*.here"))) >= 2)
            time.sleep(0.1)
        node = ray.get_runtime_context().get_node_id()
        return StageOutput(rows=[{**row, "node": node} for row in rows])


class Holder:
    """Holds its reserved resources until it is killed."""

    def hold(self) -> None:
        pass


def note_share(folder: Path, crowd: int, left: int | None = None) -> None:
    """Record this process's resources once ``crowd`` processes are running and exactly ``left`` GPUs are available."""
    import uuid

    import ray

    context = ray.get_runtime_context()
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    (folder / f"{name}.here").touch()
    until(lambda: len(list(folder.glob("*.here"))) >= crowd)
    if left is not None:
        until(lambda: ray.available_resources().get("GPU", 0) == left)
    share = {"gpus": ray.get_gpu_ids(), "node": context.get_node_id()}
    (folder / f"{name}.json").write_text(json.dumps(share))


def until(holds) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def stage_of(path: Path, name: str, numbers: range, crowd: int, left: int | None = None, **resources) -> LogicalStage:
    source = Folder(f"{path}/numbers")
    for index, number in enumerate(numbers):
        source.write_table(shard_name(index), pa.table({"number": [number]}, schema=NUMBERS))
    return LogicalStage(
        name=name,
        source=source.uri,
        source_schema=NUMBERS,
        target=Table(f"{path}/{name}", NUMBERS.append(pa.field("node", pa.string())), f"{path}/errors"),
        attempts=f"{path}/attempts",
        stage_class=Notes,
        arguments={"folder": f"{path}/notes-{name}", "crowd": crowd, "left": left},
        resources=Resources(**resources),
    )


def shares(path: Path, name: str) -> list[dict]:
    return [json.loads(note.read_text()) for note in sorted((path / f"notes-{name}").glob("*.json"))]


def all_given_back() -> None:
    import ray

    gc.collect()  # frees actors that a caught error still references
    until(lambda: ray.available_resources().get("GPU", 0) == ray.cluster_resources()["GPU"])


def go(stage: ShardedStage, show=lambda _: None) -> None:
    run_shards([stage], start_board(), Counts(24), show)


def train_on(path: Path, resources: Resources, left: int) -> None:
    """Run workers placed like those of training, which record their resources."""
    from ray.train import LoggingConfig, RunConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    folder, crowd = path / "notes-train", resources.replicas
    DataParallelTrainer(
        lambda: note_share(folder, crowd, left),
        scaling_config=scaling(resources),
        run_config=RunConfig(storage_path=str(path / "train"), logging_config=LoggingConfig(log_level="ERROR")),
    ).fit()


def test_stages_use_the_gpus_of_one_node_in_turn_and_release_them(box, tmp_path):
    all_given_back()
    go(stage_of(tmp_path, "pairs", range(2), 2, 0, replicas=2, cpus=0.5, gpus=4))
    generation = shares(tmp_path, "pairs")
    assert [len(share["gpus"]) for share in generation] == [4] * 2
    assert {gpu for share in generation for gpu in share["gpus"]} == set(range(BOX_GPUS))
    all_given_back()

    go(stage_of(tmp_path, "scored", range(2), 2, 7, replicas=2, cpus=0.5, gpus=0.5))
    scoring = shares(tmp_path, "scored")
    assert [len(share["gpus"]) for share in scoring] == [1] * 2  # each replica has half of it
    assert len({gpu for share in scoring for gpu in share["gpus"]}) == 1
    all_given_back()

    train_on(tmp_path, Resources(replicas=2, cpus=0.5, gpus=4, accelerator_type="A100"), 0)
    training = shares(tmp_path, "train")
    assert {gpu for share in training for gpu in share["gpus"]} == set(range(BOX_GPUS))
    all_given_back()


def test_a_failed_stage_releases_its_gpus(box, tmp_path):
    with pytest.raises(StageError, match="a stage that fails"):
        go(stage_of(tmp_path, "pairs", range(-2, 0), 2, replicas=2, cpus=0.5, gpus=4))
    all_given_back()


def test_preflight_names_the_stage_that_exceeds_the_capacity(box, tmp_path):
    gpu = {"gpus": 1, "cpus": 0.1, "replicas": 8}
    stages = {
        "generate": {"resources": {**gpu, "accelerator_type": "A100"}},
        "score": {"resources": {**gpu, "gpus": 0.5}},
    }
    train = {"pairs_per_step": 36, "pairs_per_worker": 4, "resources": {**gpu, "replicas": 9}}
    settings = {
        "run": str(tmp_path / "run"),
        "shard_rows": 20,
        "ray": {"address": box.address},
        **stages,
        "train": train,
    }
    found = {
        each.name: each for each in preflight(config.build(settings, where="test")).findings if each.area == "cluster"
    }
    assert (found["generate"].verdict, found["score"].verdict) == (Verdict.OK, Verdict.OK)
    assert found["train"].verdict is Verdict.FAILS
    assert "8 fit on the cluster (1 nodes, 4 CPU, 8 GPU of type A100)" in found["train"].found
    assert found["train"].remedy.startswith("lower train.resources.replicas")


@pytest.mark.parametrize(
    ("stage", "asked", "told"),
    [
        ("pairs", {"replicas": 9, "gpus": 1, "cpus": 0.1}, r"'pairs' requests 9 x \(0.1 CPU \+ 1 GPU\)"),
        (
            "pairs",
            {"replicas": 9, "gpus": 1, "cpus": 0.1},
            r"8 fit on the cluster \(1 nodes, 4 CPU, 8 GPU of type A100\)",
        ),
        ("pairs", {"replicas": 9, "gpus": 1, "cpus": 0.1}, r"no autoscaler adds nodes; lower generate.resources"),
        ("scored", {"replicas": 8, "cpus": 1}, r"4 fit on .*score.resources.replicas, set score.resources.min_"),
        ("train", {"replicas": 8, "gpus": 1, "cpus": 0.1, "accelerator_type": "H100"}, r"of type H100\), but 0 fit on"),
    ],
)
def test_a_request_beyond_the_capacity_is_refused_before_actors_start(box, stage, asked, told):
    with pytest.raises(StageError, match=told):
        check_capacity(stage, Resources(**asked), asked["replicas"], fixed=False)


def test_a_pool_needs_capacity_only_for_its_minimum(box, tmp_path):
    asked = Resources(replicas=9, min_replicas=2, gpus=1, cpus=0.1)
    current = round_on(box, tmp_path / "run")
    current.reserve("pairs", asked, asked.min_replicas)
    with pytest.raises(StageError, match="requests 9"):
        current.reserve("pairs", asked, asked.replicas)


class NotingPairs(PairGenerator):
    """The real stage 1, which also records the ID of its node."""

    def __init__(self, config, **arguments):
        import ray

        super().__init__(config, **arguments)
        node = ray.get_runtime_context().get_node_id()
        Folder(f"{config.run}/nodes").write(node, b"")


def round_on(box, path: Path, replicas: int = 1) -> Round:
    """The first round of a small run on the cluster: 60 samples, float32."""
    import io

    from rich.console import Console

    settings = {
        "run": str(path),
        "shard_rows": 5,
        "source": {"count": 60},
        "generate": {"slots": 16, "resources": {"replicas": replicas, "cpus": 1}},
        "ray": {"address": box.address},
    }
    run = Run.open(config.build(settings, where="test"))
    seed = Model("m0", "miniworld:captioner", "seed")
    return Round(run, 1, seed, seed, clusters.Cluster(run.config), Reporter(Console(file=io.StringIO())))


def pairs_of(box, path: Path, replicas: int, monkeypatch) -> tuple[dict[str, dict], set[str]]:
    """Run stage 1 on the current cluster. Returns its rows by sample ID, and the nodes that generated them."""
    monkeypatch.setattr("ray_jobs.stages.generate.PairGenerator", NotingPairs)
    current = round_on(box, path, replicas)
    generate_pairs(current, list_samples(current))
    rows = current.stage("pairs").read_shards(schemas.PAIRS).to_pylist()
    assert len(rows) == 60
    return {row["sample_id"]: row for row in rows}, set(Folder(f"{path}/nodes").names())


@pytest.fixture(scope="module")
def alone(box, tmp_path_factory):
    """The rows that a single node generates."""
    with pytest.MonkeyPatch.context() as patch:
        rows, nodes = pairs_of(box, tmp_path_factory.mktemp("alone") / "run", 1, patch)
    assert len(nodes) == 1
    return rows


@pytest.fixture(scope="module")
def grown(box, alone, tmp_path_factory):
    """Rows generated while the cluster grows by two nodes with one L4 each; the second joins during generation."""
    path = tmp_path_factory.mktemp("grown")
    box.add_node(num_cpus=2, num_gpus=1, resources={"accelerator_type:L4": 1})
    stage = stage_of(path, "pairs", range(24), 1, replicas=2, min_replicas=1, cpus=0.5, gpus=1, accelerator_type="L4")
    begun = threading.Event()

    def tell(figures: Figures) -> None:
        if figures.rows >= 2:
            begun.set()

    with ThreadPoolExecutor(1) as beside:  # only the main thread can add a node
        done = beside.submit(go, stage, tell)
        assert begun.wait(PATIENCE)
        box.add_node(num_cpus=2, num_gpus=1, resources={"accelerator_type:L4": 1})
        done.result()
    return Folder(stage.target.uri).read_shards(stage.target.schema).to_pylist()


def test_generation_grows_onto_a_node_that_joins(grown):
    import ray

    assert sorted(row["number"] for row in grown) == list(range(24))
    used = {row["node"] for row in grown}
    l4 = {node["NodeID"] for node in ray.nodes() if "accelerator_type:L4" in node["Resources"]}
    assert used == l4
    assert len(l4) == 2


def test_three_nodes_generate_the_same_captions_as_one(box, alone, grown, tmp_path, monkeypatch):
    rows, nodes = pairs_of(box, tmp_path / "run", 3, monkeypatch)
    assert len(nodes) == 3
    assert rows == alone


def test_training_waits_for_enough_gpus_on_one_node(box, grown, tmp_path):
    """Another run holds the A100 node; the other nodes have GPUs of another kind, and too few on one node."""
    import ray

    holder = ray.remote(num_gpus=BOX_GPUS, num_cpus=0)(Holder).remote()
    ray.get(holder.hold.remote(), timeout=PATIENCE)
    freed = []

    def free() -> None:
        freed.append(time.time())
        ray.kill(holder)

    threading.Timer(8.0, free).start()
    train_on(tmp_path, Resources(replicas=2, cpus=0.5, gpus=4, accelerator_type="A100"), 2)
    assert freed
    assert freed[0] < min(file.stat().st_mtime for file in (tmp_path / "notes-train").glob("*.here"))
    training = shares(tmp_path, "train")
    assert {gpu for share in training for gpu in share["gpus"]} == set(range(BOX_GPUS))
    assert len({share["node"] for share in training}) == 1
    all_given_back()
    known: dict = {}
    add_new_nodes(known)
    assert sorted(tuple(node["accelerators"]) for node in known.values()) == [("A100",), ("L4",), ("L4",)]
    assert sum(node["resources"]["GPU"] for node in known.values()) == ray.cluster_resources()["GPU"]
    assert all(node["cpus"] and node["memory_gib"] > 0 for node in known.values())  # every node was queried
