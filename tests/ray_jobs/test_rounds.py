"""A round takes finished stages from other runs, and waits for those that are being made."""

import io
import threading
import time
from dataclasses import replace

import pytest
from rich.console import Console

from jsfree import config
from jsfree.run.lease import Lease, Timing
from jsfree.run.record import read_record
from jsfree.run.run import Manifest, Run
from ray_jobs import rounds
from ray_jobs.cluster.session import Cluster
from ray_jobs.commands.console import Reporter
from ray_jobs.pipeline import seed_model
from ray_jobs.rounds import Round

MADE = Manifest(fingerprint="abc", rows_in=2, rows_out=2, device_seconds=9.0)


@pytest.fixture
def first(tmp_path) -> Run:
    return Run.open(config.build({"run": str(tmp_path / "first")}, where="test"))


@pytest.fixture
def second(tmp_path, first) -> tuple[Round, io.StringIO]:
    """The first round of a run that may reuse stages of ``first``, and what it prints."""
    run = Run.open(config.build({"run": str(tmp_path / "second"), "reuse": [first.folder.uri]}, where="test"))
    printed, seed = io.StringIO(), seed_model(run.config)
    reporter = Reporter(Console(file=printed, width=300))
    return Round(run, 1, seed, seed, Cluster(run.config), reporter), printed


def refuse() -> Manifest:
    raise AssertionError("the stage must not be made again")


def test_a_finished_stage_is_not_made_again(first, second):
    current, printed = second
    first.begin(1, "selected", "abc")
    first.finish(1, "selected", MADE)
    assert current.complete("selected", "abc", refuse) == replace(MADE, reused_from=first.folder.uri)
    assert f"2 rows  from {first.folder.uri}" in printed.getvalue()
    recorded = read_record(current.run)["stages"]["round-1"]["selected"]
    assert (recorded["status"], recorded["reused_from"]) == ("done", first.folder.uri)


def test_a_stage_with_other_inputs_is_made(first, second):
    current, _ = second
    first.begin(1, "selected", "abc")
    first.finish(1, "selected", MADE)
    made = current.complete("selected", "def", lambda: MADE)
    assert (made.fingerprint, made.reused_from) == ("def", "")


def test_a_stage_that_another_run_is_making_is_waited_for(first, second, monkeypatch):
    monkeypatch.setattr(rounds, "WAIT_SECONDS", 0.05)
    current, printed = second
    first.begin(1, "selected", "abc")

    def finish() -> None:
        time.sleep(0.5)
        first.finish(1, "selected", MADE)

    with Lease(first.folder, Timing(settle=0.1)):
        thread = threading.Thread(target=finish)
        thread.start()
        assert current.complete("selected", "abc", refuse).reused_from == first.folder.uri
        thread.join()
    assert printed.getvalue().count(f"waits for the same stage of {first.folder.uri}") == 1


def test_a_stage_of_a_run_that_stopped_is_made(first, second, monkeypatch):
    monkeypatch.setattr(rounds, "WAIT_SECONDS", 0.05)
    current, _ = second
    first.begin(1, "selected", "abc")
    with Lease(first.folder, Timing(settle=0.1)):
        stopping = threading.Timer(0.5, lambda: first.folder.remove("lease.json"))
        stopping.start()
        assert current.complete("selected", "abc", lambda: MADE).reused_from == ""
        stopping.join()


def test_a_stage_that_was_begun_here_is_taken_once_the_other_run_has_finished_it(first, second):
    """As after an interruption while the stage was taken."""
    current, _ = second
    current.run.begin(1, "selected", "abc")
    first.begin(1, "selected", "abc")
    first.finish(1, "selected", MADE)
    assert current.complete("selected", "abc", refuse).reused_from == first.folder.uri
