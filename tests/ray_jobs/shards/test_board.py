"""The board without Ray: how shards are assigned, and what happens to the claims of lost workers."""

import time
import uuid

import pytest

from ray_jobs.shards import board as boards
from ray_jobs.shards.board import Answer, Board, Claim, Shard
from ray_jobs.shards.receipts import Receipt

WORK = "pairs"
RECEIPT = Receipt(shard=0, rows_in=1, rows_out=1, rows_failed=0, tokens=1, device_seconds=1.0)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float, board: Board, *alive: str) -> None:
        """Let time pass while some workers send heartbeats."""
        for _ in range(int(seconds)):
            self.now += 1
            for process in alive:
                board.heartbeat(WORK, process)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(boards, "time", clock)
    return clock


@pytest.fixture
def board(clock) -> Board:
    board = Board()
    board.post(WORK, [(0, 0), (0, 1), (0, 2)])
    board.join(WORK, "a", "a1", "here")
    board.join(WORK, "b", "b1", "there")
    return board


def claim(board: Board, process: str) -> Answer:
    return board.claim(WORK, process, uuid.uuid4().hex)


def claimed(board: Board, process: str) -> Claim | None:
    return claim(board, process).claim


def finished(board: Board, known: int = 0) -> list[Shard]:
    return [shard for shard, _ in board.report(WORK, known).receipts]


def alive(board: Board) -> int:
    return board.report(WORK, 0).alive


def test_each_shard_is_claimed_once_and_in_order(board):
    claims = [claimed(board, name) for name in ("a1", "b1", "a1")]
    assert claims == [Claim((0, number)) for number in range(3)]
    assert claim(board, "b1") == Answer(wait=True)  # the others may be handed out again
    for each in claims:
        board.finish(WORK, each.shard, RECEIPT)
    assert claim(board, "b1") == Answer()


def test_receipts_are_reported_once(board):
    board.finish(WORK, (0, 1), RECEIPT)
    board.finish(WORK, (0, 1), RECEIPT)
    assert finished(board) == [(0, 1)]
    board.finish(WORK, (0, 0), RECEIPT)
    assert finished(board) == [(0, 1), (0, 0)]
    assert finished(board, known=1) == [(0, 0)]


def test_the_time_per_claim_does_not_grow_with_the_number_of_shards(board):
    """A scan of all waiting shards for each finished one would take a minute."""
    board.post(WORK, [(0, number) for number in range(50_000)])
    board.join(WORK, "a", "a1", "here")
    started = time.process_time()
    for number in range(50_000):
        answer = board.claim(WORK, "a1", str(number))
        board.finish(WORK, answer.claim.shard, RECEIPT)
    assert time.process_time() - started < 5


def test_claims_of_a_silent_worker_are_reassigned_first_and_blame_no_row(board, clock):
    claimed(board, "a1")
    claimed(board, "a1")
    clock.advance(boards.LOST_SECONDS + 1, board, "b1")
    assert alive(board) == 1
    assert [claimed(board, "b1") for _ in range(3)] == [Claim((0, number)) for number in range(3)]


@pytest.mark.parametrize(("node", "after"), [("here", "a1"), ("elsewhere", None)])
def test_claims_of_a_restarted_worker_are_reassigned(board, node, after):
    """On the same node the process died by itself; on another one its node may be lost."""
    claimed(board, "a1")
    board.join(WORK, "a", "a2", node)
    assert claimed(board, "b1") == Claim((0, 0), after)
    board.heartbeat(WORK, "a1")  # a late heartbeat of the old process
    assert alive(board) == 2
    assert claim(board, "a1") == Answer()


def test_joining_twice_keeps_the_claims_of_the_process(board):
    """The answer to the first call was lost."""
    claimed(board, "a1")
    board.join(WORK, "a", "a1", "here")
    assert claimed(board, "b1") == Claim((0, 1))


def test_a_reassigned_shard_finished_late_is_not_claimed_again(board):
    claimed(board, "a1")
    board.join(WORK, "a", "a2", "here")
    board.finish(WORK, (0, 0), RECEIPT)
    assert claimed(board, "b1").shard == (0, 1)


def test_a_pause_of_the_board_does_not_count_as_silence(board, clock):
    claimed(board, "a1")
    clock.now += 300
    assert claimed(board, "b1").shard == (0, 1)
    assert alive(board) == 2


def test_calls_of_a_closed_pass_have_no_effect(board):
    board.close(WORK)
    assert claim(board, "a1") == Answer()
    assert alive(board) == 0
    board.join(WORK, "c", "c1", "here")
    board.finish(WORK, (0, 0), RECEIPT)
    assert finished(board) == []
    board.post("scored", [(0, 0)])
    board.close(WORK)  # a late call
    board.join("scored", "c", "c1", "here")
    assert board.claim("scored", "c1", "request").claim == Claim((0, 0))


def test_a_repeated_request_gets_the_same_claim(board):
    first = board.claim(WORK, "a1", "request")
    assert board.claim(WORK, "a1", "request") == first == Answer(Claim((0, 0)))
    assert claimed(board, "a1") == Claim((0, 1))
    board.join(WORK, "b", "b2", "elsewhere")
    board.join(WORK, "a", "a2", "elsewhere")
    assert claimed(board, "b2") == Claim((0, 0))
