"""``jsfree ablate`` from end to end: real runs that share stages, a killed command, and a cell that fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jsfree import schemas
from jsfree.ablation.results import run_path
from jsfree.run.folder import Folder
from jsfree.run.lease import holder
from jsfree.run.run import Run
from tests.support import ROOT

SMALL = {
    "shard_rows": 16,
    "source": {"count": 48},
    "generate": {"slots": 16, "resources": {"replicas": 1}},
    "score": {"with_generation": True, "resources": {"replicas": 1}},
    "evaluate": {"source": {"count": 16}, "modes": {"greedy": {}}, "bootstrap": 50},
    "select": {"first": 1, "last": 10},
    "train": {"pairs_per_step": 8, "pairs_per_worker": 4, "epochs": 1, "checkpoint_every": 2,
              "resources": {"replicas": 1}},
}  # fmt: skip
CELLS = {"first": {}, "second": {"train.beta": 1}, "broken": {"clip.ref": "/absent"}}


def write_ablation(folder: Path) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    content = {"name": "small", "base": "base.yaml", "seeds": [3], "cells": CELLS}
    (folder / "ablation.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return folder / "ablation.yaml"


def start(file: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ray_jobs.cli", "ablate", str(file), "--out", str(out), "--no-preflight", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    return condition()


def written(folder: Path) -> dict[str, int]:
    """When each file of the finished stages below a folder was written."""
    files = [
        file for manifest in folder.rglob("_manifest.json") for file in manifest.parent.iterdir() if file.is_file()
    ]
    return {str(file): os.stat(file).st_mtime_ns for file in files}


@pytest.mark.soak
def test_a_killed_ablation_goes_on_shares_stages_and_outlives_a_cell_that_fails(tmp_path):
    file, out = write_ablation(tmp_path), tmp_path / "out"
    first, second = (out / run_path(cell, 3) for cell in ("first", "second"))
    killed = start(file, out, "--parallel", "1")
    try:
        assert wait_until((first / "round-1/scored/_manifest.json").exists, 200)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=60)
    assert wait_until(lambda: holder(Folder(str(first))) is None, 60), "the killed command left a driver behind"
    before = written(out)

    again = start(file, out, "--parallel", "1")
    output, _ = again.communicate(timeout=500)
    assert again.returncode == 1, output
    assert "error: 1 of 3 runs failed: broken, seed 3" in output
    after = written(out)
    assert {name: after.get(name) for name in before} == before, "finished work was lost or repeated"

    # The second cell has the pairs of the first one and trains on them with its own settings.
    runs = [Run.existing(str(path)) for path in (first, second)]
    pairs = [run.stage(1, "scored").read_shards(schemas.SCORED) for run in runs]
    assert pairs[0].num_rows == 48
    assert pairs[1].equals(pairs[0])
    names = ("pairs", "selected", "captions/m0-greedy", "train", "captions/m1-greedy")
    taken = {name: runs[1].manifest(1, name).reused_from for name in names}
    assert taken == {**dict.fromkeys(taken, str(first)), "train": "", "captions/m1-greedy": ""}
    references = [os.stat(f"{run.stage(1, 'reference').uri}/shard-00000.parquet").st_ino for run in runs]
    assert references[0] == references[1]  # the second cell did not compute them again
    losses = [run.stage(1, "train").read_json("steps.json")[-1]["loss"] for run in runs]
    assert losses[0] != losses[1]

    summary = json.loads((out / "ablation.json").read_text(encoding="utf-8"))
    states = {name: cell["runs"]["3"]["status"] for name, cell in summary["cells"].items()}
    assert states == {"first": "done", "second": "done", "broken": "failed"}
    assert "/absent" in summary["cells"]["broken"]["runs"]["3"]["error"]
    metrics = runs[1].round(1).read_json("metrics.json")
    recall = summary["cells"]["second"]["after"]["greedy"]["recall"]
    assert recall["min"] == recall["mean"] == recall["max"] == metrics["after"]["greedy"]["recall"]["value"]
    assert summary["device_seconds"] < summary["device_seconds_unshared"]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert f'href="{run_path("second", 3)}/report/index.html"' in page

    # Nothing is left to do for the cells that work.
    finished = start(file, out, "--only", "first", "--only", "second", "--json")
    output, _ = finished.communicate(timeout=120)
    assert finished.returncode == 0, output
    assert written(out) == after


@pytest.mark.slow
def test_a_stopped_ablation_ends_its_drivers(tmp_path):
    file, out = write_ablation(tmp_path), tmp_path / "out"
    run = Folder(str(out / run_path("first", 3)))
    stopped = start(file, out)
    try:
        assert wait_until(lambda: holder(run) is not None, 120)
        stopped.send_signal(signal.SIGTERM)
        output, _ = stopped.communicate(timeout=90)
    finally:
        stopped.kill()
    assert stopped.returncode == 128 + signal.SIGTERM, output
    assert holder(run) is None
    assert "run the same command again to continue" in output


def test_a_mistake_in_the_file_is_one_line_and_starts_nothing(tmp_path):
    file = write_ablation(tmp_path)
    file.write_text(file.read_text(encoding="utf-8").replace("train.beta", "train.bta"), encoding="utf-8")
    done = start(file, tmp_path / "out")
    output, _ = done.communicate(timeout=60)
    assert done.returncode == 2
    assert output == f"error: {file}: cell 'second': unknown key 'train.bta'; did you mean 'beta'?\n"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_the_runs_and_what_they_share(tmp_path):
    done = start(write_ablation(tmp_path), tmp_path / "out", "--dry-run", "--seeds", "5")
    output, _ = done.communicate(timeout=60)
    assert done.returncode == 0, output
    assert [name for name in ("first, seed 5", "second, seed 5", "broken, seed 5") if name in output]
    assert "selected" in output
    assert not (tmp_path / "out").exists()


def test_seeds_that_are_no_numbers_are_refused(tmp_path):
    done = start(write_ablation(tmp_path), tmp_path / "out", "--seeds", "0-2")
    output, _ = done.communicate(timeout=60)
    assert (done.returncode, "--seeds '0-2' is not a list of whole numbers" in output) == (2, True), output
