"""Who does what: claims, and what becomes of those of a worker that is lost; the class of the actor, without Ray."""

import time
import uuid

import pytest

from ray_jobs.shards import board as boards
from ray_jobs.shards.board import Board, Claim

WORK = "pairs"


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def passes(self, seconds: float, board: Board, *alive: str) -> None:
        """While some workers tell that they live."""
        for _ in range(int(seconds)):
            self.now += 1
            for process in alive:
                board.here(WORK, process)


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


def asks(board: Board, process: str) -> tuple[Claim | None, bool]:
    return board.claim(WORK, process, uuid.uuid4().hex)


def test_each_shard_is_claimed_once_in_order_and_then_there_is_nothing(board):
    claims = [asks(board, name)[0] for name in ("a1", "b1", "a1")]
    assert claims == [Claim((0, number)) for number in range(3)]
    assert asks(board, "b1") == (None, True)  # the others may not end
    for claim in claims:
        board.done(WORK, claim.shard)
    assert asks(board, "b1") == (None, False)


def test_the_time_of_a_shard_does_not_grow_with_the_number_of_shards(board):
    """With a pass over all waiting shards for each that is done this takes a minute."""
    board.post(WORK, [(0, number) for number in range(50_000)])
    board.join(WORK, "a", "a1", "here")
    started = time.process_time()
    for number in range(50_000):
        claim, _ = board.claim(WORK, "a1", str(number))
        board.done(WORK, claim.shard)
    assert time.process_time() - started < 5


def test_what_a_silent_worker_had_claimed_is_anybodys_first_and_accuses_nobody(board, clock):
    asks(board, "a1")
    asks(board, "a1")
    clock.passes(boards.LOST_SECONDS + 1, board, "b1")
    assert board.alive(WORK) == 1
    assert [asks(board, "b1")[0] for _ in range(3)] == [Claim((0, number)) for number in range(3)]


@pytest.mark.parametrize(("node", "after"), [("here", "a1"), ("elsewhere", None)])
def test_a_worker_that_lives_anew_gives_back_what_it_had(board, node, after):
    """On the same node it died by itself; on another one its node may be lost."""
    asks(board, "a1")
    board.join(WORK, "a", "a2", node)
    assert asks(board, "b1")[0] == Claim((0, 0), after)
    board.here(WORK, "a1")  # an old life's last word
    assert board.alive(WORK) == 2


def test_a_shard_that_was_taken_for_lost_and_is_published_after_all_is_not_done_again(board):
    asks(board, "a1")
    board.join(WORK, "a", "a2", "here")
    board.done(WORK, (0, 0))
    assert asks(board, "b1")[0].shard == (0, 1)


def test_a_shard_whose_receipt_is_lost_is_claimed_again(board, clock):
    asks(board, "a1")
    board.turn_over(WORK, "a1", (0, 0))
    asks(board, "a1")
    board.turn_over(WORK, "a1", (0, 1))
    board.done(WORK, (0, 1))
    assert asks(board, "b1")[0].shard == (0, 2)
    board.turn_over(WORK, "a1", (0, 2))  # late word of another's shard
    clock.passes(boards.LOST_SECONDS + 1, board, "a1", "b1")
    assert asks(board, "b1")[0] == Claim((0, 0))
    assert asks(board, "a1") == (None, True)


def test_what_the_board_slept_through_is_nobodys_silence(board, clock):
    asks(board, "a1")
    clock.now += 300
    assert asks(board, "b1")[0].shard == (0, 1)
    assert board.alive(WORK) == 2


def test_work_that_is_over_has_nothing_to_claim(board):
    board.take_down(WORK)
    assert asks(board, "a1") == (None, False)
    assert board.alive(WORK) == 0
    board.join(WORK, "c", "c1", "here")
    board.done(WORK, (0, 0))


def test_a_request_whose_answer_was_lost_gets_it_again_while_the_shard_is_claimed(board):
    first = board.claim(WORK, "a1", "request")
    assert board.claim(WORK, "a1", "request") == first == (Claim((0, 0)), False)
    assert asks(board, "a1")[0] == Claim((0, 1))
    board.join(WORK, "a", "a2", "elsewhere")
    assert asks(board, "b1")[0] == Claim((0, 0))
    assert board.claim(WORK, "a1", "request")[0] == Claim((0, 1))
