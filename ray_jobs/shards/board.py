"""The board: an actor on the driver's node that hands shards to workers and collects their receipts.

Workers claim shards one at a time, when they have capacity, so that a shard never waits for a worker that cannot start.
A claim ends with the shard's receipt. The claims of a worker that died, or that was silent for ``LOST_SECONDS``, are
handed out again. Every call may arrive twice, because Ray retries calls whose answer was lost.

Claims and heartbeats are needed because Ray retries a task only on the actor it is bound to, and waits for that actor
without limit if its node is lost (docs/log.md, 2026-11-21). Attempts (``attempts.py``) are files, because only a record
outside the worker survives its death. Receipts do not travel in Ray Data's blocks, which can be lost with a node.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ray_jobs.shards.receipts import Receipt

HEARTBEAT_SECONDS = 2.0
AWAY_SECONDS = 6.0
"""Silence after which a worker is no longer counted as alive."""
LOST_SECONDS = 20.0
"""Silence after which the claims of a worker are handed out again."""
Shard = tuple[int, int]
"""Index of a stage in its pass, and number of a shard."""


@dataclass(frozen=True)
class Claim:
    """A shard handed to a worker.

    ``after`` is the process that had the shard before, if that process died on a node that is still alive.
    """

    shard: Shard
    after: str | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to a request for a shard; ``wait``: ask again, because claimed shards may be handed out again."""

    claim: Claim | None = None
    wait: bool = False


@dataclass(frozen=True)
class Report:
    """Number of workers alive, and new receipts."""

    alive: int
    receipts: list[tuple[Shard, Receipt]]


@dataclass
class _Worker:
    """A process of an actor; ``handle`` is the actor's own handle, which does not keep it alive."""

    actor: str
    node: str
    handle: Any
    heard: float


@dataclass
class _Pass:
    """The state of a pass over shards."""

    waiting: deque[Claim] = field(default_factory=deque)
    claimed: dict[str, tuple[str, Claim]] = field(default_factory=dict)
    """Process and claim, by request: a request that arrives twice gets the same claim."""
    workers: dict[str, _Worker] = field(default_factory=dict)
    """By process; an actor that restarts is a new process."""
    receipts: dict[Shard, Receipt] = field(default_factory=dict)

    def release(self, process: str, *, died: bool) -> None:
        """Put the claims of a process back at the head of the queue, in order."""
        held = {request: claim.shard for request, (by, claim) in self.claimed.items() if by == process}
        for request, shard in sorted(held.items(), key=lambda item: item[1], reverse=True):
            del self.claimed[request]
            self.waiting.appendleft(Claim(shard, process if died else None))


class Board:
    """The actor. ``work`` identifies a pass, ``actor`` a worker, and ``process`` one process of a worker."""

    def __init__(self) -> None:
        self._work = ""
        self._pass = _Pass()
        self._awake = time.monotonic()

    def post(self, work: str, shards: Iterable[Shard]) -> None:
        """Begin a pass over shards."""
        self._work, self._pass = work, _Pass(deque(map(Claim, shards)))

    def close(self, work: str) -> None:
        """End a pass."""
        if work == self._work:
            self._work, self._pass = "", _Pass()

    def join(self, work: str, actor: str, process: str, node: str, handle: Any = None) -> None:
        """Register a process; an earlier process of the same actor has died, with its node if that was another one."""
        current = self._pass_of(work)
        for earlier, worker in list(current.workers.items()):
            if worker.actor == actor and earlier != process:
                current.release(earlier, died=worker.node == node)
                del current.workers[earlier]
        current.workers[process] = _Worker(actor, node, handle, self._now())

    def heartbeat(self, work: str, process: str) -> None:
        """Note that a process is alive."""
        now = self._now()
        if worker := self._pass_of(work).workers.get(process):
            worker.heard = now

    def claim(self, work: str, process: str, request: str) -> Answer:
        """Hand out a shard.

        Args:
            request: identifies the request; one that arrives twice gets the same claim.
        """
        self.heartbeat(work, process)
        current, now = self._pass_of(work), self._now()
        if process not in current.workers:
            return Answer()
        for silent in [each for each, worker in current.workers.items() if now - worker.heard > LOST_SECONDS]:
            current.release(silent, died=False)
        if request in current.claimed:
            return Answer(current.claimed[request][1])
        if not current.waiting:
            return Answer(wait=bool(current.claimed))
        claim = current.waiting.popleft()
        current.claimed[request] = process, claim
        return Answer(claim)

    def finish(self, work: str, shard: Shard, receipt: Receipt) -> None:
        """Take the receipt of a published shard, whether or not it is still claimed by its sender."""
        current = self._pass_of(work)
        if shard in current.receipts:
            return
        current.receipts[shard] = receipt
        request = next((request for request, (_, claim) in current.claimed.items() if claim.shard == shard), None)
        if request is not None:
            del current.claimed[request]
        else:
            current.waiting = deque(claim for claim in current.waiting if claim.shard != shard)

    def report(self, work: str, known: int) -> Report:
        """Workers alive, and all receipts after the first ``known`` ones."""
        current, now = self._pass_of(work), self._now()
        alive = sum(now - worker.heard < AWAY_SECONDS for worker in current.workers.values())
        return Report(alive, list(islice(current.receipts.items(), known, None)))

    def actors(self, work: str) -> list[Any]:
        """Handles of all workers."""
        return [worker.handle for worker in self._pass_of(work).workers.values()]

    def _pass_of(self, work: str) -> _Pass:
        """The current pass; an empty one for calls that belong to an earlier pass."""
        return self._pass if work == self._work else _Pass()

    def _now(self) -> float:
        """The time; a pause of the board's own process does not count as silence of the workers."""
        now = time.monotonic()
        paused = now - self._awake
        if paused > AWAY_SECONDS:
            for worker in self._pass.workers.values():
                worker.heard += paused
        self._awake = now
        return now


def start_board() -> Any:
    """Start a board on the driver's own node, so that the loss of another node does not affect it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=driver_node, max_task_retries=-1).remote()


class Member:
    """A worker's connection to the board, for one process."""

    def __init__(self, board: Any, work: str) -> None:
        import ray

        context = ray.get_runtime_context()
        self._board = board
        self._work = work
        self.process = uuid.uuid4().hex
        ids = context.get_actor_id(), self.process, context.get_node_id()
        ray.get(board.join.remote(work, *ids, context.current_actor))
        threading.Thread(target=self._send_heartbeats, name="heartbeat", daemon=True).start()

    def claim(self) -> Claim | None:
        """Claim the next shard; wait while claimed shards may be handed out again. None: all shards are done."""
        import ray

        while True:
            answer: Answer = ray.get(self._board.claim.remote(self._work, self.process, uuid.uuid4().hex))
            if not answer.wait:
                return answer.claim
            time.sleep(HEARTBEAT_SECONDS / 4)

    def finish(self, shard: Shard, receipt: Receipt) -> None:
        """Hand in the receipt of a published shard."""
        import ray

        ray.get(self._board.finish.remote(self._work, shard, receipt))

    def _send_heartbeats(self) -> None:
        while True:
            with suppress(Exception):  # a later heartbeat may succeed; without a session the process ends anyway
                self._board.heartbeat.remote(self._work, self.process)
            time.sleep(HEARTBEAT_SECONDS)
