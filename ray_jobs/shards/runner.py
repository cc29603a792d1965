"""Runs stage classes over shards with Ray Data: one file in, one file out; finished files are never made again.

Ray Data runs a pool of actors, which can grow with the cluster, and gives an actor a turn whenever it has capacity; a
turn is described in ``actor.py``. Receipts are also stored in the metadata of shards, so that a resumed stage counts
the shards that are already finished.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from jsfree.config import Resources
from jsfree.errors import JsfreeError, StageError
from ray_jobs.cluster.failures import unwrap_errors
from ray_jobs.cluster.same_code import checked_actor
from ray_jobs.shards.actor import ShardActor, ShardedStage
from ray_jobs.shards.board import Report, Shard
from ray_jobs.shards.progress import Counts, Show, harmless

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy

TURNS_AHEAD = 2
"""Turns queued per shard an actor can have in progress; Ray Data's pools only grow above 1.75."""
POLL_SECONDS = 0.25
REPORT_SECONDS = 2.0
"""Time that the board gets to report; a report that is late is asked for again."""
SETTLE_SECONDS = 10.0
"""Time that actors get to end their turns after all shards are done."""


def run_shards(stages: Sequence[ShardedStage], board: Any, counts: Counts, show: Show) -> None:
    """Do the missing shards of stages that need the same resources, in order, with one pool of actors.

    Args:
        board: handle of the board (``board.start_board``).
        counts: is updated, over all stages.
        show: is called with the figures every ``POLL_SECONDS``.

    Raises:
        StageError: a stage failed; finished shards are kept.
    """
    missing = _missing_shards(stages)
    for receipt in [receipt for stage in stages for receipt in stage.target.receipts()]:
        counts.add_earlier(receipt.rows_in, receipt.rows_failed)
    while missing:
        before = len(missing)
        _run_pass(stages, board, missing, counts, show)
        if len(missing) == before:  # the board may have failed to report; the files decide
            missing = _missing_shards(stages)
        if len(missing) == before:
            raise StageError(
                f"stage {stages[0].name!r}: {before} shards are not finished", "run the same command again to continue"
            )


def _missing_shards(stages: Sequence[ShardedStage]) -> set[Shard]:
    return {(index, shard) for index, stage in enumerate(stages) for shard in stage.missing()}


def _run_pass(stages: Sequence[ShardedStage], board: Any, missing: set[Shard], counts: Counts, show: Show) -> None:
    """Do shards with one pool of actors, and remove from ``missing`` those that are done.

    Some may remain: a shard of a worker that is wrongly taken for lost uses up two turns.
    """
    import ray

    resources, work = stages[0].resources, uuid.uuid4().hex
    ray.get(board.post.remote(work, sorted(missing)))
    replicas = min(resources.replicas, len(missing))
    # Few shards are divided evenly: the first actor to start must not take shards that others could do.
    in_flight = max(1, min(max(stage.shards_in_flight for stage in stages), -(-len(missing) // replicas)))
    # More turns than shards: in the last turns actors wait for shards that a lost actor may leave.
    turns = len(missing) + replicas * TURNS_AHEAD * in_flight
    # Blocks of the driver: the read tasks of ray.data.range would start further workers.
    dataset = ray.data.from_items([{"turn": 0}] * turns, override_num_blocks=turns).map_batches(
        checked_actor(partial(ShardActor, stages, board, work), stages[0].name),
        batch_size=1,
        compute=actor_pool(resources, replicas, in_flight),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        accelerator_type=resources.accelerator_type,
    )
    try:
        with unwrap_errors(stages[0].name), _receipts_collected(board, work, missing, counts, show):
            for _ in dataset.iter_batches(batch_size=None):
                pass
    except JsfreeError:
        if missing:  # otherwise the actors were killed after all shards were done
            raise
    finally:
        board.close.remote(work)


@contextmanager
def _receipts_collected(board: Any, work: str, missing: set[Shard], counts: Counts, show: Show) -> Iterator[None]:
    """Collect receipts from the board and show the figures, until the block ends and once after it.

    After an error nothing is shown, because that also writes ``run.json``, which may belong to another driver by then.
    """
    import ray

    ended = threading.Event()
    settled = threading.Timer(SETTLE_SECONDS, _kill_actors, (board, work))
    known = 0
    display = harmless(show, "progress")

    def collect(shown: bool = True) -> None:
        nonlocal known
        report = Report(0, [])
        with suppress(ray.exceptions.RayError):
            report = ray.get(board.report.remote(work, known), timeout=REPORT_SECONDS)
        known += len(report.receipts)
        if report.alive:
            counts.start()
        for shard, receipt in report.receipts:
            if shard in missing:
                missing.remove(shard)
                counts.add(receipt.rows_in, receipt.rows_failed, receipt.tokens)
        if not missing:
            settled.start()
        if shown:
            display(counts.figures(report.alive))

    def poll() -> None:
        while missing and not ended.wait(POLL_SECONDS):
            collect()

    thread = threading.Thread(target=poll, name="receipts", daemon=True)
    thread.start()
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        ended.set()
        thread.join()
        if missing:
            collect(shown=succeeded)
        settled.cancel()


def _kill_actors(board: Any, work: str) -> None:
    """Kill the actors of a pass whose shards are all done: the turns of a lost actor may wait for a place to run."""
    import ray

    for actor in ray.get(board.actors.remote(work)):
        ray.kill(actor)


def actor_pool(resources: Resources, replicas: int, in_flight: int) -> ActorPoolStrategy:
    """A pool of ``replicas`` actors, or one that grows up to that number if ``min_replicas`` is set.

    Args:
        in_flight: shards that an actor has in progress.
    """
    from ray.data import ActorPoolStrategy

    is_fixed = resources.min_replicas is None
    return ActorPoolStrategy(
        size=replicas if is_fixed else None,
        min_size=None if is_fixed else min(resources.min_replicas or 1, replicas),
        max_size=None if is_fixed else replicas,
        max_concurrent_calls_per_actor=in_flight,
        max_tasks_in_flight_per_actor=TURNS_AHEAD * in_flight,
        enable_true_multi_threading=True,
    )
