"""``jsfree watch``, ``runs`` and ``compare``: what they print, as text and as JSON."""

import io
import json
import shutil

import pytest
from rich.console import Console
from typer.testing import CliRunner

from jsfree.errors import ConfigError, RunError
from jsfree.monitor.status import read_status
from jsfree.monitor.training import Point
from jsfree.run.lease import Lease
from jsfree.run.record import update_record
from jsfree.run.run import Run
from ray_jobs import cli
from ray_jobs.commands import watch
from ray_jobs.commands.watch_view import sparkline
from tests.support import example_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run = example_run.build(folder / "one")
    update_record(run, status="done")
    return folder


def jsfree(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_watch_shows_stages_failures_curves_and_pairs_of_a_finished_run(folder):
    shown = jsfree("watch", "--run", str(folder / "one"))
    words = " ".join(shown.split())
    for expected in ("done 1 of 1 round done", "✓ pairs done 120", "3 samples: undecodable", "image 17.jpg is damaged"):
        assert expected in words
    assert "training of round 1: step 60" in words
    assert any(block in shown for block in "▃▄▅")
    assert "h = 0.00" in shown


def test_watch_prints_the_status_as_json(folder):
    data = json.loads(jsfree("watch", "--run", str(folder / "one"), "--json", "--pairs", "1"))
    assert (data["state"], len(data["pairs"])) == ("done", 1)


def test_runs_lists_the_folder(folder):
    shown = jsfree("runs", str(folder))
    measured = json.loads((folder / "one" / "round-1" / "metrics.json").read_text())
    before, after = (measured[when]["greedy"]["recall"]["value"] for when in ("before", "after"))
    assert f"{100 * before:.1f} → {100 * after:.1f}" in shown
    assert json.loads(jsfree("runs", str(folder), "--json"))[0]["name"] == "one"


def test_a_folder_that_is_missing_is_an_error_and_an_empty_one_is_not(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        jsfree("runs", str(tmp_path / "absent"))
    assert "No runs in" in jsfree("runs", str(tmp_path))


def test_compare_prints_both_runs_and_their_paired_differences(folder):
    one = str(folder / "one")
    shown = jsfree("compare", "--run", one, "--run", one)
    assert "All settings that affect results are equal." in shown
    assert "paired on 40 images" in shown
    data = json.loads(jsfree("compare", "--run", one, "--run", one, "--json"))
    differences = [line["difference"] for mode in data["modes"] for line in mode["metrics"] if line["difference"]]
    assert len(differences) > 20
    assert all(each == {"value": 0.0, "low": 0.0, "high": 0.0} for each in differences)


def test_compare_needs_two_runs(folder):
    with pytest.raises(ConfigError, match="1 run named"):
        jsfree("compare", "--run", str(folder / "one"))


def test_a_run_is_followed_until_it_no_longer_works(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "one", tmp_path / "one")
    run = Run.existing(str(tmp_path / "one"))
    stages = {"round-1": {"pairs": {"status": "running", "progress": {"rows": 50, "rows_in_all": 120, "actors": 2}}}}
    update_record(run, status="running", stages=stages)
    looks = []

    def work(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            update_record(run, status="done")

    monkeypatch.setattr(watch.time, "sleep", work)
    shown = io.StringIO()
    with Lease(run.folder):
        status = read_status(run, pairs=0)
        assert status.state == "running"
        watch._follow(run, status, Console(file=shown, force_terminal=True, width=120), 3.0, 0)
    assert looks == [3.0, 3.0]
    assert shown.getvalue().rindex("done") > shown.getvalue().rindex("running")


def test_a_sparkline_spans_the_range_of_its_values():
    points = [Point(step, value) for step, value in enumerate((0.0, 0.5, 1.0, 0.0))]
    assert sparkline(points, 10) == "▁▅█▁"
    assert sparkline([Point(0, 2.0)] * 3, 10) == "▁▁▁"
    assert len(sparkline([Point(step, step) for step in range(1000)], 30)) == 30
