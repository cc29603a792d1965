"""Which runs of an ablation share which stages, and in which order they start."""

import pytest
import yaml

from jsfree.ablation.definition import load
from jsfree.errors import RunError
from jsfree.run.folder import Folder
from jsfree.run.run import Manifest, Run
from ray_jobs.ablation.planning import plan_fingerprints
from ray_jobs.ablation.schedule import Task, makers, next_task, tasks_of
from tests.support import ROOT

SHIPPED = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))
GENERATED = {"samples", "pairs", "scored"}
SEED_CAPTIONS = {"evaluation", "captions/m0-greedy", "captions_scored/m0-greedy"}


def tasks_in(folder, cells, seeds=(0,), **common) -> list[Task]:
    (folder / "base.yaml").write_text("evaluate: {modes: {greedy: {}}}\n", encoding="utf-8")
    content = {"name": "test", "base": "base.yaml", "seeds": list(seeds), "cells": cells, "set": common}
    (folder / "ablation.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return tasks_of(load(folder / "ablation.yaml"), Folder(str(folder / "out")))


def taken(tasks: list[Task], position: int) -> dict[str, set[str]]:
    """Stages that a task takes over, by the name of the task that makes them."""
    found: dict[str, set[str]] = {}
    for (_, stage), maker in makers(tasks, position).items():
        found.setdefault(maker.name, set()).add(stage)
    return found


def test_cells_share_stages_up_to_the_setting_that_differs(tmp_path):
    tasks = tasks_in(
        tmp_path,
        {
            "base": {},
            "beta": {"train.beta": 1},
            "splits": {"select": {"first": 1}},
            "ratios": {"generate.ratios.std": 0.3},
            "decoding": {"evaluate.modes.wide.temperature": 1.3},
        },
    )
    assert [task.name for task in tasks] == [f"{name}, seed 0" for name in ("base", "beta", "splits", "ratios",
                                                                            "decoding")]  # fmt: skip
    assert taken(tasks, 0) == {}
    assert taken(tasks, 1) == {"base, seed 0": GENERATED | SEED_CAPTIONS | {"selected"}}
    assert taken(tasks, 2) == {"base, seed 0": GENERATED | SEED_CAPTIONS}
    assert taken(tasks, 3) == {"base, seed 0": {"samples"} | SEED_CAPTIONS}
    own = {"captions/m0-wide", "captions_scored/m0-wide", "captions/m1-wide", "captions_scored/m1-wide"}
    assert {stage for _, stage in tasks[4].fingerprints} - taken(tasks, 4)["base, seed 0"] == own
    assert tasks[3].config.reuse == tuple(task.config.run for task in tasks[:3])


def test_seeds_share_nothing_and_the_first_seed_of_all_cells_comes_first(tmp_path):
    tasks = tasks_in(tmp_path, {"a": {}, "b": {"train.beta": 1}}, seeds=(0, 1))
    assert [(task.cell, task.seed) for task in tasks] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert taken(tasks, 2) == {}
    assert tasks[3].config.reuse == (tasks[2].config.run,)


def test_pairs_are_not_shared_between_different_evaluation_sets(tmp_path):
    tasks = tasks_in(tmp_path, {"a": {}, "b": {"evaluate.source.count": 10}})
    assert taken(tasks, 1) == {"a, seed 0": {"samples"}}


def test_further_rounds_are_shared_as_long_as_their_models_are_the_same(tmp_path):
    tasks = tasks_in(tmp_path, {"one": {}, "two": {"rounds": 2}, "other": {"rounds": 2, "train.epochs": 3}})
    assert tasks[1].fingerprints.keys() >= {(2, "pairs"), (2, "train"), (2, "captions/m2-greedy")}
    assert set(taken(tasks, 1)["one, seed 0"]) == {stage for number, stage in tasks[0].fingerprints if number == 1}
    assert taken(tasks, 2)["two, seed 0"] == {"samples"}  # of round 2


def test_a_task_waits_for_the_task_that_makes_its_pairs_but_not_for_captions(tmp_path):
    cells = {"a": {}, "b": {"train.beta": 1}, "c": {"generate.ratios.std": 0.3}, "d": {"generate.ratios.std": 0.3,
                                                                                      "train.beta": 1}}  # fmt: skip
    tasks = tasks_in(tmp_path, cells)
    finished: set[tuple[str, str]] = set()

    def following(*states):
        return next_task(tasks, states, lambda task, stage: (task.cell, stage[1]) in finished)

    assert following("waiting", "waiting", "waiting", "waiting") == 0
    finished |= {("a", "samples")}
    assert following("running", "waiting", "waiting", "waiting") == 2  # b waits for the pairs of a
    assert following("running", "waiting", "running", "waiting") is None
    finished |= {("a", "pairs"), ("a", "scored"), ("a", "selected")}
    assert following("running", "waiting", "running", "waiting") == 1
    assert following("running", "running", "failed", "waiting") == 3  # it makes the pairs itself
    assert following("done", "done", "done", "done") is None


def test_a_run_made_with_other_settings_is_refused_before_anything_starts(tmp_path):
    before = tasks_in(tmp_path, {"a": {}})[0]
    run = Run.open(before.config)
    run.begin(1, "train", before.fingerprints[1, "train"])
    before.check_inputs()
    changed = tasks_in(tmp_path, {"a": {"train.beta": 0.7}})[0]
    with pytest.raises(RunError, match=r"'train' of round 1 .*train.beta: 0.1 -> 0.7.*another folder with --out"):
        changed.check_inputs()


def test_a_task_is_done_when_all_its_stages_and_its_report_are(tmp_path):
    task = tasks_in(tmp_path, {"a": {}})[0]
    run = Run.open(task.config)
    for (number, stage), fingerprint in task.fingerprints.items():
        assert not task.is_done()
        run.begin(number, stage, fingerprint)
        run.finish(number, stage, Manifest(fingerprint=fingerprint, rows_in=1, rows_out=1))
    run.round(1).write_json("label_free.json", {})
    assert not task.is_done()
    (run.folder / "report").write("index.html", b"")
    assert task.is_done()


def test_a_run_that_its_stop_rule_ended_is_done(tmp_path):
    task = tasks_in(tmp_path, {"a": {"rounds": 3, "rounds_stop": {}}})[0]
    run = Run.open(task.config)
    lost = {"value": -0.5, "low": -0.6, "high": -0.4}
    same = {"value": 0.0, "low": 0.0, "high": 0.0}
    changes = {"clip_score": same, "words": lost, "repeated_sentences": same, "truncated": same}
    for number in (1, 2):
        for stage in [stage for each, stage in task.fingerprints if each == number]:
            fingerprint = task.fingerprints[number, stage]
            run.begin(number, stage, fingerprint)
            run.finish(number, stage, Manifest(fingerprint=fingerprint, rows_in=1, rows_out=1))
        run.round(number).write_json("label_free.json", {})
    (run.folder / "report").write("index.html", b"")
    assert not task.is_done()
    run.round(2).write_json("label_free.json", {"changes": {"greedy": changes}})
    assert task.is_done()


def test_planning_touches_no_file(tmp_path):
    task = tasks_in(tmp_path, {"a": {"rounds": 2}})[0]
    assert plan_fingerprints(task.config) == task.fingerprints
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_ablation_is_valid_and_its_cells_differ(path, tmp_path):
    ablation = load(path)
    assert ablation.description
    tasks = tasks_of(ablation, Folder(str(tmp_path)))
    assert len(tasks) == len(ablation.cells) * len(ablation.seeds)
    assert len({(task.config.own_fingerprint, task.seed) for task in tasks}) == len(tasks)
