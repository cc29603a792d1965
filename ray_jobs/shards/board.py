"""The board on the driver's node: what is to be done, who does it, and who lives.

Workers claim shards one by one, each when it has room, so that a shard is bound to nobody who has not begun it. A claim
ends when the driver has the shard's receipt. What a worker had claimed that died, or fell silent, is anybody's again.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

BEAT_SECONDS = 2.0
AWAY_SECONDS = 6.0
"""Silence after which a worker no longer counts as alive."""
LOST_SECONDS = 20.0
"""Silence after which its claims are anybody's."""
Shard = tuple[int, int]
"""A stage of the work, and the number of a shard."""


@dataclass(frozen=True)
class Claim:
    """A shard that a worker is to do."""

    shard: Shard
    after: str | None = None
    """The process that had it before, if that ended by itself; not with its node, and not just silent."""


@dataclass
class _Work:
    """One pass over shards."""

    waiting: deque[Claim]
    claimed: dict[Shard, str] = field(default_factory=dict)
    answers: dict[str, Claim] = field(default_factory=dict)
    """What was answered to requests for shards that are still claimed: an answer may get lost on its way."""
    heard: dict[str, float] = field(default_factory=dict)
    lives: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The process and the node that an actor lives in."""
    handles: dict[str, Any] = field(default_factory=dict)
    """An actor's own handle, which is weak: it keeps none alive."""
    over: dict[Shard, float] = field(default_factory=dict)
    """When the turn ended in which a shard was done, for those whose receipt is not there."""

    def release(self, process: str, *, died: bool) -> None:
        """Give back what a process had claimed; it goes first, in the order it had."""
        self.heard.pop(process, None)
        for shard in sorted((shard for shard, by in self.claimed.items() if by == process), reverse=True):
            self.end(shard)
            self.waiting.appendleft(Claim(shard, process if died else None))

    def end(self, shard: Shard) -> bool:
        """End a shard's claim, if it is claimed."""
        self.answers = {request: claim for request, claim in self.answers.items() if claim.shard != shard}
        return self.claimed.pop(shard, None) is not None


class Board:
    """The actor. ``work`` names a pass, ``actor`` a worker that may be started again, ``process`` one life of it."""

    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}
        self._awake = time.monotonic()

    def post(self, work: str, shards: Iterable[Shard]) -> None:
        """Put work up."""
        self._works[work] = _Work(deque(map(Claim, shards)))

    def take_down(self, work: str) -> None:
        """Forget work that is over."""
        self._works.pop(work, None)

    def join(self, work: str, actor: str, process: str, node: str, handle: Any = None) -> None:
        """A worker has come to life; an earlier life of it has ended, by itself if it was on the same node."""
        of = self._works.get(work)
        if of is None:
            return
        if actor in of.lives:
            before, there = of.lives[actor]
            of.release(before, died=there == node)
        of.lives[actor] = process, node
        of.handles[actor] = handle
        of.heard[process] = self._now()

    def here(self, work: str, process: str) -> None:
        """A worker lives."""
        of, now = self._works.get(work), self._now()
        if of is not None and any(process == each for each, _ in of.lives.values()):
            of.heard[process] = now

    def claim(self, work: str, process: str, request: str) -> tuple[Claim | None, bool]:
        """A shard to do, if there is one, and whether to ask again: others have not ended, and may not.

        A request that comes twice gets the same answer.
        """
        of, now = self._works.get(work), self._now()
        if of is None:
            return None, False
        of.heard[process] = now
        for silent in [each for each, heard in of.heard.items() if now - heard > LOST_SECONDS]:
            of.release(silent, died=False)
        for shard in [each for each, ended in of.over.items() if now - ended > LOST_SECONDS]:
            del of.over[shard]
            if of.end(shard):
                of.waiting.appendleft(Claim(shard))  # its receipt was lost; who claims it finds the shard done
        if request in of.answers:
            return of.answers[request], False
        if not of.waiting:
            return None, bool(of.claimed)
        claim = of.waiting.popleft()
        of.claimed[claim.shard] = process
        of.answers[request] = claim
        return claim, False

    def turn_over(self, work: str, process: str, shard: Shard) -> None:
        """The turn has ended in which a process had claimed a shard."""
        of = self._works.get(work)
        if of is not None and of.claimed.get(shard) == process:
            of.over[shard] = self._now()

    def done(self, work: str, shard: Shard) -> None:
        """A shard's receipt is there."""
        of = self._works.get(work)
        if of is not None:
            of.over.pop(shard, None)
            if not of.end(shard):  # a shard that is claimed does not wait
                of.waiting = deque(claim for claim in of.waiting if claim.shard != shard)

    def alive(self, work: str) -> int:
        """Workers heard of lately."""
        of, now = self._works.get(work), self._now()
        return 0 if of is None else sum(now - heard < AWAY_SECONDS for heard in of.heard.values())

    def actors(self, work: str) -> list[Any]:
        """Handles of all workers that have ever joined."""
        of = self._works.get(work)
        return [] if of is None else list(of.handles.values())

    def _now(self) -> float:
        """The time; what the board itself slept through is no silence of anybody's."""
        now = time.monotonic()
        slept = now - self._awake
        if slept > AWAY_SECONDS:
            for of in self._works.values():
                of.heard = {process: heard + slept for process, heard in of.heard.items()}
        self._awake = now
        return now


def put_up() -> Any:
    """A board on the driver's own node, which the loss of no other takes down."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Retried, should its node not be heard for a moment; every word may come twice.
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here, max_task_retries=-1).remote()


class Member:
    """A worker's side of the board, for one life of it."""

    def __init__(self, board: Any, work: str) -> None:
        import ray

        context = ray.get_runtime_context()
        self._board = board
        self._work = work
        self.process = uuid.uuid4().hex
        ids = context.get_actor_id(), self.process, context.get_node_id()
        ray.get(board.join.remote(work, *ids, context.current_actor))
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def claim(self) -> Claim | None:
        """The next shard; None when all are done. Waits while others may fail to end theirs."""
        import ray

        while True:
            claim, again = ray.get(self._board.claim.remote(self._work, self.process, uuid.uuid4().hex))
            if claim is not None or not again:
                return cast(Claim | None, claim)
            time.sleep(BEAT_SECONDS / 4)

    def turn_over(self, shard: Shard) -> None:
        """Say that a turn has ended, well or not."""
        self._board.turn_over.remote(self._work, self.process, shard)

    def _beat(self) -> None:
        while True:
            with suppress(Exception):  # the next beat may come through; without a session the process ends anyway
                self._board.here.remote(self._work, self.process)
            time.sleep(BEAT_SECONDS)
