"""The status of a run is read from its files alone: while it works, after its driver died, and after the fact."""

import json
import math
import shutil

import pyarrow as pa
import pytest

from jsfree import config, schemas
from jsfree.monitor.runs import list_runs
from jsfree.monitor.status import read_status
from jsfree.monitor.training import MAX_POINTS, curve
from jsfree.run.folder import Folder, shard_name
from jsfree.run.lease import Lease
from jsfree.run.record import record_progress, record_stage, stage_states, update_record
from jsfree.run.run import Run
from jsfree.run.stages import manifests_of_round
from tests.support import example_run


@pytest.fixture(scope="module")
def finished(two_rounds, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "done"
    shutil.copytree(two_rounds.folder.path, folder)
    run = Run.existing(str(folder))
    update_record(run, status="done", nodes=NODES)
    return run


NODES = {"a1": {"host": "gpu-1", "resources": {"CPU": 8.0, "GPU": 2.0}, "memory_gib": 60.0, "accelerators": ["L4"]}}


def begin(folder, source: Run, shards_of_pairs: int) -> Run:
    """A run that has listed 120 images in 3 shards and generated some of the pairs, taken from ``source``."""
    run = Run.open(config.build({**example_run.SETTINGS, "run": str(folder / "run"), "rounds": 2}, where="test"))
    for name, shards in (("evaluation", 1), ("samples", 3), ("pairs", shards_of_pairs)):
        run.begin(1, name, "f" * 16)
        for shard in range(shards):
            if name == "evaluation":
                rows = [example_run.sample(run, "test", 0)]
                table = pa.Table.from_pylist(rows, schema=schemas.SAMPLES)
                run.stage(1, name).write_table(shard_name(shard), table)
            else:
                run.stage(1, name).link_from(source.stage(1, name), shard_name(shard))
    example_run.finish(run, 1, "samples", 120)
    example_run.finish(run, 1, "evaluation", 1)
    update_record(run, status="running", rounds_done=0, stages=stage_states(run), nodes=NODES)
    record_stage(run, 1, "pairs", "running", {})
    return run


PROGRESS = {
    "rows": 80,
    "rows_in_all": 120,
    "rows_failed": 2,
    "rows_per_second": 4.0,
    "tokens_per_second": 230.0,
    "seconds_left": 10.0,
    "actors": 3,
}


def test_a_finished_run_has_all_stages_failures_nodes_and_training(finished):
    status = read_status(finished)
    assert status.state == "done"
    done = {(stage.round, stage.name) for stage in status.stages if stage.status == "done"}
    planned = {(n, name) for n in (1, 2) for name in manifests_of_round(n, ["greedy", "sampled"])}
    assert planned - done == {(1, "evaluation")}  # the example does not list its evaluation images
    assert all(stage.share == 1.0 for stage in status.stages if stage.status == "done")
    assert {(each.stage, each.kind, each.rows) for each in status.failures} == {
        ("samples", "undecodable", 6),
        ("captions/m1-greedy", "missing", 2),
    }
    assert [(node.host, node.gpus, node.accelerators) for node in status.nodes] == [("gpu-1", 2.0, ["L4"])]
    assert (status.training.round, status.training.step) == (2, 60)
    assert status.training.curves["loss"][0].value == pytest.approx(0.693, abs=1e-3)
    assert {"loss", "chosen_reward", "rejected_reward"} <= status.training.curves.keys()


def test_stages_are_in_the_order_in_which_they_run(finished):
    names = [stage.name for stage in read_status(finished, pairs=0).stages if stage.round == 2]
    positions = [
        names.index(name) for name in ("samples", "pairs", "scored", "selected", "train", "captions/m2-greedy")
    ]
    assert positions == sorted(positions)


def test_a_running_stage_has_its_shards_rates_and_replicas(tmp_path, one_round):
    run = begin(tmp_path, one_round, shards_of_pairs=2)
    record_progress(run, [(1, "pairs")], PROGRESS)
    with Lease(run.folder):
        status = read_status(run)
    assert status.state == "running"
    (pairs,) = (stage for stage in status.stages if stage.status == "running")
    assert pairs.name == "pairs"
    assert (pairs.shards, pairs.shards_total, pairs.share) == (2, 3, pytest.approx(2 / 3))
    assert (pairs.rows, pairs.rows_total, pairs.rows_failed, pairs.replicas) == (80, 120, 2, 3)
    assert (pairs.rows_per_second, pairs.seconds_remaining) == (4.0, 10.0)
    waiting = {(stage.round, stage.name) for stage in status.stages if stage.status == "waiting"}
    assert {(1, "scored"), (1, "train"), (2, "samples")} <= waiting


def test_a_stage_that_another_one_makes_along_is_seen_by_its_shards(tmp_path, one_round):
    """``run.json`` names only the first stage of a pass; scores that generation makes along appear as shards."""
    run = begin(tmp_path, one_round, shards_of_pairs=2)
    run.begin(1, "scored", "f" * 16)
    run.stage(1, "scored").link_from(one_round.stage(1, "scored"), shard_name(0))
    with Lease(run.folder):
        stages = {stage.name: stage for stage in read_status(run).stages if stage.round == 1}
    assert stages["scored"].status == "running"
    assert stages["scored"].share == pytest.approx(1 / 2)


def test_a_run_whose_driver_died_is_interrupted_and_its_stage_unfinished(tmp_path, one_round):
    run = begin(tmp_path, one_round, shards_of_pairs=2)
    record_progress(run, [(1, "pairs")], PROGRESS)
    status = read_status(run)
    assert status.state == "interrupted"
    pairs = next(stage for stage in status.stages if stage.name == "pairs")
    assert pairs.status == "unfinished"
    assert pairs.rows_per_second is None


def test_a_running_training_has_steps_and_time_left(tmp_path, one_round):
    run = begin(tmp_path, one_round, shards_of_pairs=3)
    example_run.finish(run, 1, "selected", 480)
    steps = [{"step": n, "loss": 0.69 - 0.01 * n, "seconds": 2.0, "tokens_per_second": 900.0} for n in range(10)]
    run.stage(1, "train").write_json("steps.json", steps)
    planned = 480 // run.config.train.pairs_per_step * run.config.train.epochs
    with Lease(run.folder):
        status = read_status(run)
    train = next(stage for stage in status.stages if (stage.round, stage.name) == (1, "train"))
    assert (train.status, train.rows, train.rows_total) == ("running", 10, planned)
    assert train.seconds_remaining == pytest.approx(2.0 * (planned - 10))


def test_the_newest_pairs_come_from_the_last_shard_of_scores(finished):
    pairs = read_status(finished, pairs=2).pairs
    rows = finished.stage(2, "scored").read_shards(schemas.SCORED).to_pylist()
    assert [pair.sample_id for pair in pairs] == [rows[-1]["sample_id"], rows[-2]["sample_id"]]
    low, high = pairs[0].captions
    assert (low.text, high.text) == (rows[-1]["low"]["text"], rows[-1]["high"]["text"])
    assert (low.ratio, high.score) == (rows[-1]["low"]["ratio"], rows[-1]["high"]["score"])
    assert pairs[0].inverted == rows[-1]["inverted"]
    assert pairs[0].picture is None


def test_unscored_pairs_have_no_scores_and_pictures_are_small_data_uris(tmp_path, one_round):
    run = begin(tmp_path, one_round, shards_of_pairs=1)
    pair = read_status(run, pairs=1, pictures=True).pairs[0]
    assert [caption.score for caption in pair.captions] == [None, None]
    assert pair.inverted is None
    assert pair.picture.startswith("data:image/jpeg;base64,")
    assert len(pair.picture) < 40_000


def test_a_run_in_an_object_store_is_read_through_its_uri(finished):
    remote = Folder("memory://watched/run")
    remote.upload(finished.folder.path)
    try:
        here, there = read_status(finished), read_status(Run.existing("memory://watched/run"))
        assert there.stages == here.stages
        assert (there.training, there.pairs, there.failures) == (here.training, here.pairs, here.failures)
        assert [run.uri for run in list_runs(Folder("memory://watched"))] == ["memory://watched/run"]
    finally:
        remote.remove()


def test_a_new_run_has_only_waiting_stages(tmp_path):
    run = Run.open(config.build({"run": str(tmp_path / "run")}, where="test"))
    status = read_status(run)
    assert status.state == "new"
    assert {stage.status for stage in status.stages} == {"waiting"}
    assert (status.training, status.pairs, status.failures) == (None, [], [])


def test_a_curve_averages_equal_parts_and_keeps_the_last_step():
    history = [{"step": step, "loss": float(step)} for step in range(1000)]
    points = curve(history, "loss")
    assert len(points) == MAX_POINTS
    assert points[-1].step == 999
    assert sum(point.value for point in points) / len(points) == pytest.approx(499.5, abs=1)
    assert [point.value for point in curve(history[:3], "loss")] == [0.0, 1.0, 2.0]
    assert curve(history, "nll") == []


def test_figures_that_are_not_finite_are_left_out_of_a_curve():
    history = [{"step": step, "loss": value} for step, value in enumerate((0.7, math.nan, 0.5, math.inf))]
    assert [(point.step, point.value) for point in curve(history, "loss")] == [(0, 0.7), (2, 0.5)]


def test_the_status_is_json_data(finished):
    data = json.loads(json.dumps(read_status(finished, pairs=1).as_json()))
    assert {"state", "stages", "nodes", "failures", "training", "pairs"} <= data.keys()
    assert data["stages"][0]["share"] == 1.0
