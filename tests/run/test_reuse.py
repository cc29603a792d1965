"""Stages are taken from another run only if that run has finished them from the same inputs."""

import json
import os
from dataclasses import asdict

import pyarrow as pa
import pytest

from jsfree import config, schemas
from jsfree.errors import RunError
from jsfree.run import reuse
from jsfree.run.folder import shard_name
from jsfree.run.lease import LEASE, Holder, Lease, Timing
from jsfree.run.run import Manifest, Run

ROWS = pa.Table.from_pylist(
    [{"sample_id": "a", "stage": "pairs", "kind": "missing", "message": "no file"}], schema=schemas.ERRORS
)


def run_at(uri: str, **settings) -> Run:
    return Run.open(config.build({"run": uri, **settings}, where="test"))


def finish(run: Run, stage: str, fingerprint: str, seconds: float = 7.0) -> Manifest:
    run.begin(1, stage, fingerprint)
    return run.finish(1, stage, Manifest(fingerprint=fingerprint, rows_in=1, rows_out=1, device_seconds=seconds))


def write_pairs(run: Run, fingerprint: str = "abc") -> Manifest:
    run.begin(1, "pairs", fingerprint)
    run.stage(1, "pairs").write_table(shard_name(0), ROWS)
    run.errors(1, "pairs").write_table(shard_name(0), ROWS)
    return finish(run, "pairs", fingerprint)


@pytest.fixture
def pair(uri) -> tuple[Run, Run]:
    """A run with finished pairs, and one that may take them."""
    first = run_at(f"{uri}-first")
    write_pairs(first)
    return first, run_at(f"{uri}-second", reuse=[f"{uri}-first", f"{uri}-absent"])


def test_a_finished_stage_with_the_same_inputs_is_taken_with_its_rows_errors_and_costs(pair):
    first, second = pair
    second.begin(1, "pairs", "abc")
    source = reuse.find_finished(second, 1, "pairs", "abc")
    taken = reuse.take(second, 1, "pairs", source)
    assert taken.reused_from == first.folder.uri
    assert (taken.fingerprint, taken.rows_out, taken.device_seconds) == ("abc", 1, 7.0)
    assert second.begin(1, "pairs", "abc") == taken
    assert second.stage(1, "pairs").read_table(shard_name(0), schemas.ERRORS).equals(ROWS)
    assert second.errors(1, "pairs").read_table(shard_name(0), schemas.ERRORS).equals(ROWS)


def test_a_taken_stage_is_independent_of_the_run_it_came_from(pair):
    first, second = pair
    second.begin(1, "pairs", "abc")
    reuse.take(second, 1, "pairs", first)
    first.folder.remove()
    assert second.stage(1, "pairs").read_table(shard_name(0), schemas.ERRORS).equals(ROWS)


def test_files_on_one_disk_are_linked_not_copied(tmp_path):
    first, second = run_at(str(tmp_path / "first")), run_at(str(tmp_path / "second"))
    write_pairs(first)
    second.begin(1, "pairs", "abc")
    for _ in range(2):  # a repeated call leaves no partial files
        reuse.take(second, 1, "pairs", first)
    files = [os.stat(f"{run.stage(1, 'pairs').uri}/{shard_name(0)}") for run in (first, second)]
    assert files[0].st_ino == files[1].st_ino
    assert second.stage(1, "pairs").names() == ["_inputs.json", "_manifest.json", shard_name(0)]


def test_other_inputs_an_unfinished_stage_and_a_missing_run_are_not_taken(pair, uri):
    first, second = pair
    assert reuse.find_finished(second, 1, "pairs", "other") is None
    assert reuse.find_finished(second, 2, "pairs", "abc") is None
    first.stage(1, "pairs").remove("_manifest.json")
    assert reuse.find_finished(second, 1, "pairs", "abc") is None


def test_pairs_of_a_run_with_another_evaluation_set_are_not_taken(pair):
    """Their fingerprint is the same, but images of this run's evaluation set may be among them."""
    first, second = pair
    finish(first, "evaluation_hashes", "images of the first")
    finish(second, "evaluation_hashes", "images of the second")
    assert reuse.find_finished(second, 1, "pairs", "abc") is None
    first.stage(1, "evaluation_hashes").remove()
    finish(first, "evaluation_hashes", "images of the second")
    assert reuse.find_finished(second, 1, "pairs", "abc") is not None


def test_stages_of_another_commit_of_a_model_are_not_taken(uri):
    first = run_at(f"{uri}-first", models={"commits": {"org/llava": "1" * 40, "org/clip": "3" * 40}})
    write_pairs(first)
    settings = {"reuse": [f"{uri}-first"]}
    moved = run_at(f"{uri}-moved", models={"commits": {"org/llava": "2" * 40}}, **settings)
    same = run_at(f"{uri}-same", models={"commits": {"org/llava": "1" * 40}}, **settings)
    assert reuse.find_finished(moved, 1, "pairs", "abc") is None
    assert reuse.find_finished(same, 1, "pairs", "abc") is not None


def test_a_stage_that_is_removed_while_it_is_taken_is_not_published(pair, monkeypatch):
    first, second = pair
    second.begin(1, "pairs", "abc")
    original = type(first.folder).link_from

    def remove_after(target, source, name):
        original(target, source, name)
        first.stage(1, "pairs").remove("_manifest.json")

    monkeypatch.setattr(type(first.folder), "link_from", remove_after)
    with pytest.raises(RunError, match="'pairs' of round 1 was removed"):
        reuse.take(second, 1, "pairs", first)
    assert second.manifest(1, "pairs") is None


def test_training_is_taken_with_its_model_and_without_its_checkpoints(pair):
    first, second = pair
    first.begin(1, "train", "trained")
    for name in ("train/checkpoints-abc/step-1/weights", "train/steps.json", "model/model.safetensors"):
        first.round(1).write(name, b"content")
    finish(first, "train", "trained")
    second.begin(1, "train", "trained")
    reuse.take(second, 1, "train", first)
    assert second.stage(1, "model").read("model.safetensors") == b"content"
    assert second.stage(1, "train").names() == ["_inputs.json", "_manifest.json", "steps.json"]


def test_reference_log_probabilities_are_taken_for_the_same_pairs_and_model(pair, uri):
    first, second = pair
    table, origin = shard_name(0), {"model": "m0", "captioner.dtype": "float32"}
    first.stage(1, "reference").write_table(table, ROWS, {"origin": {**origin, "pairs": "digest"}})
    reuse.take_reference(second, 1, origin)  # neither run has selected pairs
    finish(first, "selected", "same")
    finish(second, "selected", "same")
    reuse.take_reference(second, 1, origin)  # made twice: their scores may differ in the last bits
    assert not second.stage(1, "reference").exists(table)
    second.stage(1, "selected").remove()
    second.begin(1, "selected", "same")
    reuse.take(second, 1, "selected", first)
    reuse.take_reference(second, 1, {**origin, "model": "m1"})
    assert not second.stage(1, "reference").exists(table)
    reuse.take_reference(second, 1, origin)
    assert second.stage(1, "reference").read_table(table, schemas.ERRORS).equals(ROWS)


def test_only_a_running_driver_is_waited_for(pair, uri):
    first, second = pair
    first.stage(1, "pairs").remove("_manifest.json")
    assert reuse.find_unfinished(second, 1, "pairs", "abc") is None
    with Lease(first.folder, Timing(settle=0.1)):
        assert reuse.find_unfinished(second, 1, "pairs", "abc").folder.uri == first.folder.uri
        assert reuse.find_unfinished(second, 1, "pairs", "other") is None
        both = first.config.model_copy(update={"reuse": (second.folder.uri,)})
        first.folder.write("config.yaml", both.to_yaml().encode())
        assert reuse.find_unfinished(second, 1, "pairs", "abc") is None  # they would wait for each other
    ended = asdict(Holder.this_process(Timing())) | {"pid": 2**22 + 1}
    first.folder.write(LEASE, json.dumps(ended).encode())
    first.folder.write("config.yaml", config.build({}, "test").to_yaml().encode())
    assert reuse.find_unfinished(second, 1, "pairs", "abc") is None
