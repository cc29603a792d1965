"""A folder's runs are listed with their state and metrics; damaged ones with the reason."""

import shutil

import pytest

from jsfree import config
from jsfree.monitor.runs import list_runs
from jsfree.run.folder import Folder
from jsfree.run.record import update_record
from jsfree.run.run import Run
from tests.support import example_run


@pytest.fixture(scope="module")
def folder(one_round, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(one_round.folder.path, folder / "first")
    first = Run.existing(str(folder / "first"))
    update_record(first, status="done", created="2026-11-01T00:00:00+00:00")
    second = example_run.build(folder / "nested" / "deep" / "second", truth=False, errors=False, source={"count": 30})
    update_record(second, status="failed", error="disk full", created="2026-11-02T00:00:00+00:00")
    begun = Run.open(config.build({"run": str(folder / "begun"), "rounds": 3}, where="test"))
    stages = {"round-1": {"samples": {"status": "done"}, "pairs": {"status": "running"}}}
    update_record(begun, status="running", created="2026-11-03T00:00:00+00:00", stages=stages)
    (folder / "broken").mkdir()
    (folder / "broken" / "config.yaml").write_text("sorce: {}\n")
    (folder / "broken" / "run.json").write_text("{}")
    (folder / "others").mkdir()
    (folder / "others" / "config.yaml").write_text("a program's own settings\n")
    evaluation = Run.open(config.build({"run": str(folder / "benchmark" / "evaluation")}, where="test"))
    update_record(evaluation, status="done", created="2026-11-04T00:00:00+00:00")
    return folder


def test_runs_are_found_at_several_levels_the_newest_first(folder):
    runs = list_runs(Folder(str(folder)))
    assert [run.name for run in runs] == ["begun", "nested/deep/second", "first", "broken"]


def test_a_run_has_its_state_rounds_and_current_stage(folder):
    runs = {run.name: run for run in list_runs(Folder(str(folder)))}
    assert (runs["begun"].state, runs["begun"].stage, runs["begun"].rounds) == ("interrupted", "round-1/pairs", 3)
    assert (runs["first"].state, runs["first"].rounds_done, runs["first"].result) == ("done", 1, "m1")
    assert (runs["nested/deep/second"].state, runs["nested/deep/second"].error) == ("failed", "disk full")
    assert runs["broken"].state == "unreadable"
    assert "unknown key 'sorce'" in runs["broken"].error


def test_metrics_are_those_of_the_files(folder):
    runs = {run.name: run for run in list_runs(Folder(str(folder)))}
    measured = Folder(str(folder / "first" / "round-1")).read_json("metrics.json")
    recall = runs["first"].metric("recall")
    assert recall.before == measured["before"]["greedy"]["recall"]
    assert recall.after == measured["after"]["greedy"]["recall"]
    assert runs["nested/deep/second"].metric("recall") is None
    assert runs["nested/deep/second"].metric("clip_score") is not None
    assert runs["begun"].metrics == []


def test_a_run_itself_can_be_named(folder):
    assert [run.state for run in list_runs(Folder(str(folder / "first")))] == ["done"]
