"""Workers, nodes and drivers that die: one of each, of what ``make soak`` does at random to every stage."""

import shutil
from pathlib import Path

import kills
import pyarrow as pa
import pytest

from jsfree.run.folder import Folder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def raylets():
    cluster = kills.Raylets()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def reference(raylets, tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    kills.undisturbed("generate", kills.settings_at(path), raylets.address)
    return path


def test_a_worker_a_node_and_a_driver_may_die_and_nothing_is_lost_twice_or_other(raylets, reference, tmp_path):
    run = tmp_path / "run"
    kinds = {1: "worker", 4: "raylet", 8: "driver"}  # of 12 shards
    pairs = Folder(f"{run}/round-1/pairs")
    trial = kills.disturbed_after("generate", kills.settings_at(run), raylets, kinds, lambda: len(pairs.shards()))
    assert trial.problems == []
    assert [kill["kind"] for kill in trial.kills] == list(kinds.values()), trial.output
    assert trial.drivers >= 2
    assert kills.differences(run, reference) == []


def test_training_that_loses_a_worker_and_its_driver_ends_with_the_same_weights(raylets, reference, tmp_path):
    """Two workers under ZeRO-3; ``make soak`` does it with ZeRO-2 too, at random moments."""
    sharded = {**kills.SETTINGS["train"], "zero_stage": 3}
    file = kills.settings_at(reference, train=sharded)
    for command in ("score", "select", "train"):
        kills.undisturbed(command, file, raylets.address)
    run = tmp_path / "run"
    file = kills.copied(reference, run, ("samples", "pairs", "scored", "selected"), train=sharded)
    log = Folder(f"{run}/round-1/train")
    kinds = {3: "worker", 7: "driver"}  # of 10 steps, with checkpoints every second one
    trial = kills.disturbed_after(
        "train", file, raylets, kinds, lambda: len(log.read_json("steps.json")) if log.exists("steps.json") else 0
    )
    assert trial.problems == []
    assert [kill["kind"] for kill in trial.kills] == list(kinds.values()), trial.output
    steps = log.read_json("steps.json")
    assert [step["step"] for step in steps] == list(range(len(steps)))
    assert len(steps) >= 10
    assert kills.same_model(run, reference)


def test_the_harness_tells_lost_doubled_and_changed_rows(reference, tmp_path):
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
