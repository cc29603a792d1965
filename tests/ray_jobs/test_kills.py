"""Death of one worker, one node and one driver. ``make soak`` kills them at random in every stage."""

import io
import shutil
from pathlib import Path

import kills
import pyarrow as pa
import pytest
from rich.console import Console

from jsfree import config
from jsfree.run.folder import Folder
from ray_jobs import pipeline
from ray_jobs.commands.console import Reporter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def raylets():
    cluster = kills.Raylets()
    yield cluster
    cluster.close()


def settings_at(path: Path, **changes) -> Path:
    """Settings of a run that scores pairs during generation, which needs fewer workers."""
    return kills.settings_at(path, score={"with_generation": True, "resources": {"replicas": 2}}, **changes)


def finish_pairs(file: Path) -> None:
    """Publish the scores and select pairs. Neither step needs a worker."""
    for stage in ("score", "select"):
        pipeline.run_stage(config.load(file), Reporter(Console(file=io.StringIO())), stage)


@pytest.fixture(scope="module")
def reference(raylets, tmp_path_factory) -> Path:
    """An undisturbed run up to its selected pairs."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    file = settings_at(path)
    kills.undisturbed("generate", file, raylets.address)
    finish_pairs(file)
    return path


def test_rows_survive_the_death_of_a_worker_a_node_and_a_driver(raylets, reference, tmp_path):
    run = tmp_path / "run"
    kinds = {1: "worker", 4: "raylet", 8: "driver"}  # of 12 shards
    pairs = Folder(f"{run}/round-1/pairs")
    file = settings_at(run)
    trial = kills.disturbed_after("generate", file, raylets, kinds, lambda: len(pairs.shards()))
    assert trial.problems == []
    assert [kill["kind"] for kill in trial.kills] == list(kinds.values()), trial.output
    assert trial.drivers >= 2
    finish_pairs(file)
    assert kills.differences(run, reference) == []


def test_training_reaches_the_same_weights_after_losing_a_worker_and_its_driver(raylets, reference, tmp_path):
    """Two workers under ZeRO-3; ``make soak`` does it with ZeRO-2 too, at random moments."""
    sharded = {**kills.SETTINGS["train"], "zero_stage": 3}
    kills.undisturbed("train", settings_at(reference, train=sharded), raylets.address)
    run = tmp_path / "run"
    file = kills.copied(reference, run, ("samples", "pairs", "scored", "selected"), train=sharded)
    log = Folder(f"{run}/round-1/train")
    kinds = {3: "worker", 7: "driver"}  # of 10 steps, with a checkpoint every second step
    trial = kills.disturbed_after(
        "train", file, raylets, kinds, lambda: len(log.read_json("steps.json")) if log.exists("steps.json") else 0
    )
    assert trial.problems == []
    assert [kill["kind"] for kill in trial.kills] == list(kinds.values()), trial.output
    steps = log.read_json("steps.json")
    assert [step["step"] for step in steps] == list(range(len(steps)))
    assert len(steps) >= 10
    assert kills.same_model(run, reference)


def test_the_harness_detects_lost_duplicated_and_changed_rows(reference, tmp_path):
    assert kills.differences(reference, reference) == []
    for number, change in enumerate([lose, double, alter]):
        path = tmp_path / str(number)
        shutil.copytree(reference, path)
        change(path)
        assert len(kills.differences(path, reference)) >= 1


def lose(path: Path) -> None:
    (path / "round-1/pairs/shard-00003.parquet").unlink()


def double(path: Path) -> None:
    shutil.copy(path / "round-1/pairs/shard-00003.parquet", path / "round-1/pairs/shard-00099.parquet")


def alter(path: Path) -> None:
    shard = Folder(str(path / "round-1/pairs"))
    table = shard.read_table("shard-00003.parquet", kills.TABLES["pairs"])
    seeds = table.column_names.index("seed")
    changed = table.set_column(seeds, table.schema.field(seeds), pa.array([5] * len(table), pa.int64()))
    shard.write_table("shard-00003.parquet", changed)
