"""``run.json`` of a run that is running, finished or failed."""

import re

import pytest

from jsfree import config
from jsfree.errors import LeaseError, StageError
from jsfree.run.lease import LEASE, Lease, Timing
from jsfree.run.record import record_stage, recorded, stage_states
from jsfree.run.run import Manifest, Run

DONE = Manifest(
    fingerprint="abc",
    rows_in=10,
    rows_out=9,
    rows_failed=1,
    seconds=2.0,
    device_seconds=3.5,
    tokens=70,
    facts={"kept": 9},
)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.open(config.build({"run": str(tmp_path / "run")}, where="test"))


def test_the_record_describes_a_run_from_start_to_end(run):
    with Lease(run.folder) as lease, recorded(run, lease):
        about = run.folder.read_json("run.json")
        assert about["status"] == "running"
        assert {"ray", "torch", "transformers", "deepspeed", "python"} <= set(about["versions"])
        assert re.fullmatch(r"[0-9a-f]{16}", about["code"]["fingerprint"])
        assert about["driver"]["cpus"] > 0
        assert about["driver"]["memory_gib"] > 0.1
        run.begin(1, "pairs", "abc")
        record_stage(run, 1, "pairs", "running", {})
        assert run.folder.read_json("run.json")["stages"] == {"round-1": {"pairs": {"status": "running"}}}
        record_stage(run, 1, "pairs", run.finish(1, "pairs", DONE), {"f00": {"host": "node-7"}})
    about = run.folder.read_json("run.json")
    assert about["status"] == "done"
    assert about["nodes"] == {"f00": {"host": "node-7"}}
    speed = {"rows_per_second": 5.0, "tokens_per_second": 35.0}
    cost = {"fingerprint": "abc", "seconds": 2.0, "device_seconds": 3.5, "tokens": 70}
    assert about["stages"]["round-1"]["pairs"] == {
        "status": "done", "rows_in": 10, "rows_out": 9, "rows_failed": 1, **cost, **speed,
    }  # fmt: skip


def test_the_error_of_a_failed_run_is_recorded_until_it_is_resumed(run):
    with pytest.raises(StageError), Lease(run.folder) as lease, recorded(run, lease):
        raise StageError("stage 'pairs' failed\nmore")
    about = run.folder.read_json("run.json")
    assert (about["status"], about["error"]) == ("failed", "stage 'pairs' failed")
    with Lease(run.folder) as lease, recorded(run, lease):
        again = run.folder.read_json("run.json")
        assert again["status"] == "running"
        assert "error" not in again
        assert again["created"] == about["created"]
    with pytest.raises(KeyboardInterrupt), Lease(run.folder) as lease, recorded(run, lease):
        raise KeyboardInterrupt
    assert run.folder.read_json("run.json")["status"] == "stopped"


def test_nothing_is_recorded_after_the_lease_is_lost(run):
    import time

    with pytest.raises(LeaseError), Lease(run.folder, Timing(renew=0.1)) as lease, recorded(run, lease):  # noqa: PT012
        until = time.monotonic() + 10
        while time.monotonic() < until:
            run.folder.remove(LEASE)  # again: a renewal that has begun writes the file once more
            time.sleep(0.2)
    assert run.folder.read_json("run.json")["status"] == "running"


def test_stage_states_include_unfinished_stages(run):
    run.begin(1, "pairs", "abc")
    run.finish(1, "pairs", DONE)
    run.begin(1, "captions/m0-greedy", "def")
    run.begin(2, "samples", "fed")
    run.round(1).write_json("metrics.json", {})
    states = stage_states(run)
    assert states["round-1"]["pairs"]["tokens"] == 70
    assert {name: entry["status"] for name, entry in states["round-1"].items()} == {
        "pairs": "done", "captions/m0-greedy": "unfinished",
    }  # fmt: skip
    assert states["round-2"] == {"samples": {"status": "unfinished"}}
