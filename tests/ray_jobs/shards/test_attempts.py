"""Records of attempts at shards, and which rows an interrupted attempt blames."""

import pytest

from jsfree.errors import StageError
from jsfree.run.folder import Folder
from ray_jobs.shards.attempts import LOSSES, MAX_ATTEMPTS, UNEXPLAINED, Attempt

PROCESSES: list[int] = []


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "attempts"))


def begun(folder, *, died=False) -> Attempt:
    """Begin the next attempt in another process; ``died``: the previous process died by itself."""
    process = len(PROCESSES)
    PROCESSES.append(process)
    attempt = Attempt(folder, 7, after=str(process - 1) if died else None)
    attempt.begin(str(process))
    return attempt


def die_alone(attempt: Attempt, row: str) -> None:
    with pytest.raises(SystemExit), attempt.alone(row):
        raise SystemExit


def test_a_finished_attempt_leaves_no_record(folder):
    attempt = begun(folder)
    assert folder.names() == ["shard-00007.json"]
    assert not attempt.one_by_one
    attempt.end()
    assert folder.names() == []
    assert not begun(folder, died=True).one_by_one


def test_rows_run_one_by_one_after_their_worker_died(folder):
    begun(folder)
    assert begun(folder, died=True).one_by_one


def test_rows_run_one_by_one_after_some_unexplained_interruptions(folder):
    for _ in range(UNEXPLAINED):
        assert not begun(folder).one_by_one
    assert begun(folder).one_by_one


def test_a_row_that_kills_its_worker_twice_alone_is_quarantined(folder):
    begun(folder)
    attempt = begun(folder, died=True)
    with attempt.alone("x"):
        pass
    die_alone(attempt, "y")
    attempt = begun(folder, died=True)
    assert attempt.is_cleared("x")
    assert not attempt.is_quarantined("y")
    die_alone(attempt, "y")
    attempt = begun(folder, died=True)
    assert attempt.is_quarantined("y")
    assert not attempt.is_cleared("y")
    assert not attempt.is_quarantined("x")


def test_a_row_is_quarantined_after_repeated_unexplained_interruptions(folder):
    begun(folder)
    for _ in range(LOSSES):
        attempt = begun(folder, died=False)
        assert not attempt.is_quarantined("y")
        die_alone(attempt, "y")
    assert begun(folder).is_quarantined("y")


def test_the_death_of_a_process_that_never_began_the_shard_blames_no_row(folder):
    begun(folder)
    attempt = begun(folder, died=True)
    die_alone(attempt, "y")
    for _ in range(2):
        Attempt(folder, 7, after="another process")
    assert not begun(folder).is_quarantined("y")


def test_rows_that_kill_their_worker_only_together_run_alone_again(folder):
    begun(folder)
    attempt = begun(folder, died=True)
    with attempt.alone("x"), attempt.alone("y"):
        pass
    assert begun(folder, died=False).is_cleared("x")  # x and y now run together and kill the worker
    attempt = begun(folder, died=True)
    assert not attempt.is_cleared("x")
    assert not attempt.is_quarantined("x")


def test_the_stage_fails_after_too_many_attempts_without_a_row_to_blame(folder):
    for _ in range(MAX_ATTEMPTS):
        begun(folder, died=True)
    with pytest.raises(StageError, match="shard 7 was attempted 20 times"):
        begun(folder, died=True)
    assert begun(folder).one_by_one  # a restarted stage may try again


def test_an_error_blames_no_row_and_keeps_earlier_conclusions(folder):
    begun(folder).give_up()
    assert folder.names() == []
    begun(folder)
    attempt = begun(folder, died=True)
    die_alone(attempt, "y")
    attempt = begun(folder, died=True)
    attempt.give_up()
    attempt = begun(folder, died=True)
    assert attempt.one_by_one
    assert not attempt.is_quarantined("y")
    die_alone(attempt, "y")
    assert begun(folder, died=True).is_quarantined("y")
