"""The board on the driver's node: what is to be done, who does it, and who lives.

Workers claim shards one by one, each when it has room, so that a shard is bound to nobody who has not begun it. What
a worker had claimed that died, or fell silent with its node, is anybody's again.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

BEAT_SECONDS = 2.0
AWAY_SECONDS = 6.0
"""Silence after which a worker no longer counts as alive."""
LOST_SECONDS = 20.0
"""Silence after which its claims are anybody's: by then Ray knows whether its node is lost."""
Claim = tuple[int, int]
"""A stage of the work, and a shard of it."""


@dataclass
class _Work:
    """One pass over shards."""

    waiting: deque[Claim]
    claimed: dict[Claim, str] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)
    """The process that an actor lives in."""

    def release(self, process: str) -> None:
        """Give back what a process had claimed; it goes first, in the order it had."""
        self.heard.pop(process, None)
        lost = sorted(claim for claim, by in self.claimed.items() if by == process)
        for claim in reversed(lost):
            del self.claimed[claim]
            self.waiting.appendleft(claim)


class Board:
    """The actor. ``work`` names a pass, ``actor`` a worker that may be started again, ``process`` one life of it."""

    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}

    def post(self, work: str, claims: Iterable[Claim]) -> None:
        """Put work up."""
        self._works[work] = _Work(deque(claims))

    def take_down(self, work: str) -> None:
        """Forget work that is over."""
        self._works.pop(work, None)

    def join(self, work: str, actor: str, process: str) -> None:
        """A worker has come to life; an earlier life of it has ended."""
        of = self._works.get(work)
        if of is None:
            return
        if actor in of.workers:
            of.release(of.workers[actor])
        of.workers[actor] = process
        of.heard[process] = time.monotonic()

    def here(self, work: str, process: str) -> None:
        """A worker lives."""
        of = self._works.get(work)
        if of is not None and process in of.workers.values():
            of.heard[process] = time.monotonic()

    def claim(self, work: str, process: str) -> tuple[Claim | None, bool]:
        """A shard to do, if there is one, and whether to ask again: others have not ended, and may not."""
        of = self._works.get(work)
        if of is None:
            return None, False
        now = time.monotonic()
        of.heard[process] = now
        for silent in [each for each, heard in of.heard.items() if now - heard > LOST_SECONDS]:
            of.release(silent)
        if not of.waiting:
            return None, bool(of.claimed)
        claim = of.waiting.popleft()
        of.claimed[claim] = process
        return claim, False

    def done(self, work: str, claim: Claim) -> None:
        """A shard is published."""
        of = self._works.get(work)
        if of is not None:
            of.claimed.pop(claim, None)
            with suppress(ValueError):  # taken for lost, and published after all
                of.waiting.remove(claim)

    def alive(self, work: str) -> int:
        """Workers heard of lately."""
        of = self._works.get(work)
        now = time.monotonic()
        return 0 if of is None else sum(now - heard < AWAY_SECONDS for heard in of.heard.values())


def put_up() -> Any:
    """A board on the driver's own node, which the loss of no other takes down."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()


class Member:
    """A worker's side of the board, for one life of it."""

    def __init__(self, board: Any, work: str, actor: str) -> None:
        import ray

        self._board = board
        self._work = work
        self._process = uuid.uuid4().hex
        ray.get(board.join.remote(work, actor, self._process))
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def claim(self) -> Claim | None:
        """The next shard; None when all are done. Waits while others may fail to end theirs."""
        import ray

        while True:
            claim, again = ray.get(self._board.claim.remote(self._work, self._process))
            if claim is not None:
                return int(claim[0]), int(claim[1])
            if not again:
                return None
            time.sleep(BEAT_SECONDS / 4)

    def done(self, claim: Claim) -> None:
        """Say that a shard is published."""
        self._board.done.remote(self._work, claim)

    def _beat(self) -> None:
        with suppress(Exception):  # without the board, or the session, there is nobody to tell
            while True:
                self._board.here.remote(self._work, self._process)
                time.sleep(BEAT_SECONDS)
