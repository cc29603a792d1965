"""What is noted of shards that are begun, and whom an attempt that did not end accuses."""

import pytest

from jsfree.storage import Folder
from ray_jobs.attempts import Attempts, Worker

HERE = Worker(job="1", node="a")


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "attempts"))


def begin(folder, worker=HERE, alive=("a", "b")):
    return Attempts(folder).begin(7, worker, lambda: alive)


def test_an_attempt_that_ends_leaves_nothing(folder):
    attempt = begin(folder)
    assert folder.names() == ["shard-00007.json"]
    assert not attempt.one_by_one
    attempt.end()
    assert folder.names() == []
    assert not begin(folder).one_by_one


def test_a_worker_that_died_by_itself_makes_its_rows_suspects(folder):
    begin(folder)
    assert begin(folder).one_by_one


@pytest.mark.parametrize(
    ("worker", "alive"), [(Worker("1", "gone"), ("a",)), (Worker("0", "a"), ("a",))], ids=["node", "driver"]
)
def test_a_lost_node_or_driver_accuses_nobody_unless_it_happens_again_and_again(folder, worker, alive):
    begin(folder, worker)
    assert not begin(folder, HERE, alive).one_by_one
    assert begin(folder, HERE, alive).one_by_one  # now the worker itself died

    Attempts(folder)._folder.remove()
    for _ in range(3):
        begin(folder, worker, alive)
    assert begin(folder, HERE, alive).one_by_one


def test_only_a_row_that_dies_alone_twice_is_quarantined(folder):
    begin(folder)
    attempt = begin(folder)
    with attempt.alone("x"):
        pass
    with pytest.raises(SystemExit), attempt.alone("y"):
        raise SystemExit
    attempt = begin(folder)
    assert attempt.is_cleared("x")
    assert not attempt.is_quarantined("y")
    with pytest.raises(SystemExit), attempt.alone("y"):
        raise SystemExit
    attempt = begin(folder)
    assert attempt.is_quarantined("y")
    assert not attempt.is_cleared("y")
    assert not attempt.is_quarantined("x")


def test_a_worker_that_dies_between_two_rows_accuses_none(folder):
    begin(folder)
    for _ in range(3):
        attempt = begin(folder)
        with attempt.alone("x"):
            pass
    attempt = begin(folder)
    assert attempt.is_cleared("x")
    assert not attempt.is_quarantined("x")
