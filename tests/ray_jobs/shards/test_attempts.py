"""What is noted of shards that are begun, and whom an attempt that did not end accuses."""

import pytest

from jsfree.errors import StageError
from jsfree.run.folder import Folder
from ray_jobs.shards.attempts import LOSSES, MAX_ATTEMPTS, UNEXPLAINED, Attempt

PROCESSES: list[int] = []


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "attempts"))


def begun(folder, *, died=False) -> Attempt:
    """The next attempt, in another process; ``died``: the one before it ended by itself."""
    process = len(PROCESSES)
    PROCESSES.append(process)
    attempt = Attempt(folder, 7, after=str(process - 1) if died else None)
    attempt.begin(str(process))
    return attempt


def dies_alone(attempt: Attempt, row: str) -> None:
    with pytest.raises(SystemExit), attempt.alone(row):
        raise SystemExit


def test_an_attempt_that_ends_leaves_nothing(folder):
    attempt = begun(folder)
    assert folder.names() == ["shard-00007.json"]
    assert not attempt.one_by_one
    attempt.end()
    assert folder.names() == []
    assert not begun(folder, died=True).one_by_one


def test_a_worker_that_died_by_itself_makes_its_rows_suspects(folder):
    begun(folder)
    assert begun(folder, died=True).one_by_one


def test_a_lost_node_or_driver_accuses_nobody_but_after_some_rows_run_alone(folder):
    for _ in range(UNEXPLAINED):
        assert not begun(folder).one_by_one
    assert begun(folder).one_by_one


def test_only_a_row_that_dies_alone_twice_is_quarantined(folder):
    begun(folder)
    attempt = begun(folder, died=True)
    with attempt.alone("x"):
        pass
    dies_alone(attempt, "y")
    attempt = begun(folder, died=True)
    assert attempt.is_cleared("x")
    assert not attempt.is_quarantined("y")
    dies_alone(attempt, "y")
    attempt = begun(folder, died=True)
    assert attempt.is_quarantined("y")
    assert not attempt.is_cleared("y")
    assert not attempt.is_quarantined("x")


def test_a_node_that_is_lost_while_a_row_runs_alone_accuses_it_only_if_that_goes_on(folder):
    begun(folder)
    for _ in range(LOSSES):
        attempt = begun(folder, died=False)
        assert not attempt.is_quarantined("y")
        dies_alone(attempt, "y")
    assert begun(folder).is_quarantined("y")


def test_a_death_that_was_not_of_the_noted_attempt_accuses_nobody(folder):
    """Its claim was another's, who never began."""
    begun(folder)
    attempt = begun(folder, died=True)
    dies_alone(attempt, "y")
    for _ in range(2):
        Attempt(folder, 7, after="somebody else")
    assert not begun(folder).is_quarantined("y")


def test_rows_that_end_their_worker_only_together_are_run_alone_again(folder):
    begun(folder)
    attempt = begun(folder, died=True)
    with attempt.alone("x"), attempt.alone("y"):
        pass
    assert begun(folder, died=False).is_cleared("x")  # they now run together, and end it
    attempt = begun(folder, died=True)
    assert not attempt.is_cleared("x")
    assert not attempt.is_quarantined("x")


def test_a_shard_that_ends_every_worker_without_a_row_to_blame_is_given_up(folder):
    for _ in range(MAX_ATTEMPTS):
        begun(folder, died=True)
    with pytest.raises(StageError, match="shard 7 was begun 20 times"):
        begun(folder, died=True)
    assert begun(folder).one_by_one  # once the machine is mended


def test_an_error_accuses_nobody_and_what_is_known_stays(folder):
    begun(folder).give_up()
    assert folder.names() == []
    begun(folder)
    attempt = begun(folder, died=True)
    dies_alone(attempt, "y")
    attempt = begun(folder, died=True)
    attempt.give_up()
    attempt = begun(folder, died=True)
    assert attempt.one_by_one
    assert not attempt.is_quarantined("y")
    dies_alone(attempt, "y")
    assert begun(folder, died=True).is_quarantined("y")
