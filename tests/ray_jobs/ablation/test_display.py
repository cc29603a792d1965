"""The console output of an ablation."""

import io

import pytest
import yaml
from rich.console import Console

from jsfree.ablation import page
from jsfree.ablation.definition import load
from jsfree.run.folder import Folder
from ray_jobs.ablation.display import ConsoleDisplay, print_results
from ray_jobs.ablation.drivers import describe_stage
from ray_jobs.ablation.schedule import tasks_of
from tests.support import example_run


@pytest.fixture
def display(tmp_path):
    """A display of one task, whose run is finished, and what it prints."""
    (tmp_path / "base.yaml").write_text("{}", encoding="utf-8")
    content = {"name": "x", "base": "base.yaml", "seeds": [2], "cells": {"only": {}}, "figure": {"metrics": ["recall"]}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    ablation = load(tmp_path / "x.yaml")
    tasks = tasks_of(ablation, Folder(str(tmp_path)))
    printed = io.StringIO()

    def make(terminal: bool):
        console = Console(file=printed, width=100, force_terminal=terminal, color_system=None)
        return ConsoleDisplay(console, ablation, tasks), tasks[0], printed

    return make


def test_plain_output_has_a_line_for_each_stage_and_the_result(display):
    shown, task, printed = display(terminal=False)
    run = example_run.build(task.config.run)
    recall = run.round(1).read_json("metrics.json")
    before, after = (100 * recall[when]["greedy"]["recall"]["value"] for when in ("before", "after"))
    with shown.live():
        shown.started(task)
        for stage in ("", "round 1: pairs 20/90", "round 1: pairs 40/90", "", "round 1: train"):
            shown.running({task.name: stage})
        shown.ended(task, "", 75.0)
    lines = printed.getvalue().splitlines()
    assert lines == [
        f"  only, seed 2  started; log: {task.config.run}.log",
        "  only, seed 2  starting",
        "  only, seed 2  round 1: pairs",
        "  only, seed 2  round 1: train",
        f"  only, seed 2  done in 75.0 s [1/1]: greedy: Recall {before:.1f} → {after:.1f} %",
    ]


def test_a_failed_run_is_shown_with_its_error_and_its_log(display):
    shown, task, printed = display(terminal=False)
    ended = []
    shown.after_each = lambda: ended.append(task)
    shown.ended(task, "stage 'train' failed [x]", 3.0)
    assert printed.getvalue() == f"  only, seed 2  failed [1/1]: stage 'train' failed [x]; log: {task.config.run}.log\n"
    assert ended == [task]


def test_a_terminal_shows_the_stage_of_running_tasks_in_place(display):
    shown, task, printed = display(terminal=True)
    with shown.live():
        shown.started(task)
        shown.running({task.name: "round 1: pairs 20/90"})
        shown.running({task.name: "round 1: pairs 40/90"})
        shown.running({})
    for expected in ("pairs 20/90", "pairs 40/90", "\x1b["):
        assert expected in printed.getvalue()


def test_the_table_shows_means_with_their_ranges():
    spread = {"mean": 0.5, "min": 0.25, "max": 0.75}
    cell = {"before": {"greedy": {"recall": dict.fromkeys(spread, 0.9)}}, "after": {"greedy": {"recall": spread}}}
    printed = io.StringIO()
    print_results(Console(file=printed, width=100), page.mode_tables({"cells": {"swap": cell}}))
    lines = [line for line in printed.getvalue().splitlines() if "│" in line]
    assert [line.split("│")[1].strip() for line in lines] == ["m0", "swap"]
    assert "90.0 " in lines[0]
    assert "50.0 (25.0–75.0)" in lines[1]


def test_the_running_stage_is_read_from_the_record_of_the_run(tmp_path):
    run = example_run.build(tmp_path / "run")
    assert describe_stage(run) == ""
    progress = {"status": "running", "progress": {"rows": 40, "rows_in_all": 90}}
    done = {"status": "done"}
    run.folder.write_json("run.json", {"stages": {"round-1": {"samples": done, "pairs": progress}}})
    assert describe_stage(run) == "round 1: pairs 40/90"
    run.folder.write_json(
        "run.json", {"stages": {"round-1": {"pairs": done}, "round-2": {"train": {"status": "running"}}}}
    )
    assert describe_stage(run) == "round 2: train"
