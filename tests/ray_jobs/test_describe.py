"""``run.json``: true while a run goes on, when it ended, and when it failed."""

import re
import subprocess

import pytest

from jsfree import config
from jsfree.errors import LeaseError, StageError
from jsfree.run.lease import LEASE, Lease, Timing
from jsfree.run.storage import Manifest, Run
from ray_jobs import describe
from ray_jobs.describe import described, note_stage, stages

DONE = Manifest("abc", 10, 9, 1, 2.0, 3.5, 70, {"kept": 9})


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.open(config.build({"run": str(tmp_path / "run")}, where="test"))


def test_a_run_is_described_from_its_start_to_its_end(run):
    with Lease(run.folder) as lease, described(run, lease):
        about = run.folder.read_json("run.json")
        assert about["status"] == "running"
        assert {"ray", "torch", "transformers", "deepspeed", "python"} <= set(about["versions"])
        assert re.fullmatch(r"[0-9a-f]{16}", about["code"]["fingerprint"])
        assert about["driver"]["cpus"] > 0
        assert about["driver"]["memory_gib"] > 0.1
        run.begin(1, "pairs", "abc")
        note_stage(run, 1, "pairs", "running", {})
        assert run.folder.read_json("run.json")["stages"] == {"round-1": {"pairs": {"status": "running"}}}
        note_stage(run, 1, "pairs", run.finish(1, "pairs", DONE), {"f00": {"host": "node-7"}})
    about = run.folder.read_json("run.json")
    assert about["status"] == "done"
    assert about["nodes"] == {"f00": {"host": "node-7"}}
    speed = {"rows_per_second": 5.0, "tokens_per_second": 35.0}
    cost = {"fingerprint": "abc", "seconds": 2.0, "device_seconds": 3.5, "tokens": 70}
    assert about["stages"]["round-1"]["pairs"] == {
        "status": "done", "rows_in": 10, "rows_out": 9, "rows_failed": 1, **cost, **speed,
    }  # fmt: skip


def test_a_failed_run_says_why_and_is_described_anew_when_it_is_taken_up(run):
    with pytest.raises(StageError), Lease(run.folder) as lease, described(run, lease):
        raise StageError("stage 'pairs' failed\nmore")
    about = run.folder.read_json("run.json")
    assert (about["status"], about["error"]) == ("failed", "stage 'pairs' failed")
    with Lease(run.folder) as lease, described(run, lease):
        again = run.folder.read_json("run.json")
        assert again["status"] == "running"
        assert "error" not in again
        assert again["created"] == about["created"]
    with pytest.raises(KeyboardInterrupt), Lease(run.folder) as lease, described(run, lease):
        raise KeyboardInterrupt
    assert run.folder.read_json("run.json")["status"] == "stopped"


def test_a_driver_that_lost_the_run_writes_no_more_of_it(run):
    import time

    with pytest.raises(LeaseError), Lease(run.folder, Timing(renew=0.1)) as lease, described(run, lease):  # noqa: PT012
        run.folder.remove(LEASE)
        time.sleep(10)
    assert run.folder.read_json("run.json")["status"] == "running"


def test_the_stages_are_found_on_disk_with_what_is_half_done(run):
    run.begin(1, "pairs", "abc")
    run.finish(1, "pairs", DONE)
    run.begin(1, "captions/m0-greedy", "def")
    run.begin(2, "samples", "fed")
    run.round(1).write_json("metrics.json", {})
    found = stages(run)
    assert found["round-1"]["pairs"]["tokens"] == 70
    assert {name: entry["status"] for name, entry in found["round-1"].items()} == {
        "pairs": "done", "captions/m0-greedy": "unfinished",
    }  # fmt: skip
    assert found["round-2"] == {"samples": {"status": "unfinished"}}


def test_the_commit_is_that_of_our_own_checkout(tmp_path, monkeypatch):
    """Installed into some other project's folder, its commit is not ours; in a checkout of our own it is told."""
    package = tmp_path / "jsfree" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    monkeypatch.setattr(describe.jsfree, "__file__", str(package))
    assert "commit" not in describe.code()
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert (describe.code()["commit"], describe.code()["changed"]) == (head, False)
    package.write_text("x = 1\n")
    assert describe.code()["changed"] is True


def test_gpus_are_listed_with_their_driver(tmp_path, monkeypatch):
    """With a program in place of nvidia-smi that prints what it prints on a node of two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nfor i in 1 2; do echo 'NVIDIA A100-SXM4-80GB, 81920, 580.65.06'; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = describe.machine()
    assert found["gpus"] == ["NVIDIA A100-SXM4-80GB, 81920 MiB"] * 2
    assert found["nvidia_driver"] == "580.65.06"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert "gpus" not in describe.machine()


def test_the_command_is_told_as_it_was_typed():
    assert describe.command(["/x/bin/jsfree", "run", "--set", "run=a b"]) == "jsfree run --set 'run=a b'"
