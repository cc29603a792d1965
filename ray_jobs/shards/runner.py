"""Running a stage class over shards with Ray Data: one file in, one file out, finished files never redone.

Ray Data runs a pool of actors, which grows with the cluster, and hands each a turn whenever it has room. An actor
claims a shard from the board, reads it, runs the stage class, publishes the rows that failed and then the shard
itself, and returns a receipt; the receipt also travels in the shard's metadata, so that a resumed stage counts what was
done before. An actor has several shards under way, so that its model goes on with the next one while the last rows of
one end.
"""

from __future__ import annotations

import gc
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from jsfree import schemas
from jsfree.config import Resources
from jsfree.errors import JsfreeError, RowError, StageError
from jsfree.gpus import device_of
from jsfree.run.folder import READERS, Folder, shard_name
from jsfree.run.run import Manifest
from jsfree.run.streaming import scan
from jsfree.schemas import StageOutput
from ray_jobs.cluster.failures import unwrap_errors
from ray_jobs.cluster.same_code import checked_actor
from ray_jobs.shards.attempts import Attempt
from ray_jobs.shards.board import Member, Shard
from ray_jobs.shards.progress import Clock, Counts, Show, shown

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy, Dataset


class StageClass(Protocol):
    """A plain class: load in ``__init__`` (last argument ``device``), one batch of rows a call, from any thread."""

    def __call__(self, rows: Sequence[Any]) -> StageOutput:
        """Process rows."""


@dataclass(frozen=True)
class Receipt:
    """What a shard cost and gave; ``rows_excluded`` are images of the evaluation set, which did not fail."""

    shard: int
    rows_in: int
    rows_out: int
    rows_failed: int
    tokens: int
    device_seconds: float
    rows_excluded: int = 0


TURNS_AHEAD = 2
"""Turns that an actor is given for each that it has room for; Ray Data has pools grow from 1.75 on."""
SETTLE_SECONDS = 10.0
"""Time that actors get to end their turns once all shards are done."""
NOTHING = Receipt(-1, 0, 0, 0, 0, 0.0)
"""The receipt of a turn in which nothing was left to do."""


@dataclass(frozen=True)
class Table:
    """A table that a stage writes, shard by shard: where, of what columns, and where its rows that failed go."""

    uri: str
    schema: pa.Schema
    errors: str

    def publish(self, number: int, output: StageOutput, rows_in: int, seconds: float) -> Receipt:
        """Write a shard, the rows that failed first; an earlier attempt's may be others."""
        failed = len(output.errors) - output.excluded
        receipt = Receipt(number, rows_in, len(output.rows), failed, output.tokens, seconds, output.excluded)
        if output.errors:
            errors = pa.Table.from_pylist(output.errors, schema=schemas.ERRORS)
            Folder(self.errors).write_table(shard_name(number), errors)
        else:
            Folder(self.errors).remove(shard_name(number))
        table = pa.Table.from_pylist(output.rows, schema=self.schema)
        Folder(self.uri).write_table(shard_name(number), table, asdict(receipt))
        return receipt

    def receipt(self, number: int) -> Receipt | None:
        """The receipt of a shard; None if it is not finished."""
        folder, name = Folder(self.uri), shard_name(number)
        return Receipt(**folder.table_metadata(name)) if folder.exists(name) else None

    def receipts(self) -> list[Receipt]:
        """Receipts of all finished shards."""
        folder = Folder(self.uri)
        with ThreadPoolExecutor(READERS) as readers:  # a store takes its time for each
            return [Receipt(**facts) for facts in readers.map(folder.table_metadata, map(shard_name, folder.shards()))]


@dataclass(frozen=True)
class ShardedStage:
    """Everything an actor needs to turn shards of one table into shards of the next."""

    name: str
    source: str
    source_schema: pa.Schema
    target: Table
    build: Callable[..., StageClass]
    arguments: Mapping[str, Any]
    resources: Resources
    attempts: str
    """Where the shards that are begun are noted."""
    at_once: int = 2
    """Shards that an actor has under way."""
    beside: Table | None = None
    """Where ``StageOutput.beside`` goes, for a class that does a second stage's work in the same pass."""

    def missing(self) -> list[int]:
        """Shards of the source that the target does not have yet."""
        return sorted(set(Folder(self.source).shards()) - set(Folder(self.target.uri).shards()))

    def start(self) -> StageClass:
        """The stage class, built on the device that its replica got."""
        return self.build(**self.arguments, device=device_of(self.resources.gpus))


class ShardActor:
    """The Ray Data actor around stage classes: one at a time, built when its first shard comes."""

    def __init__(self, stages: Sequence[ShardedStage], board: Any, work: str) -> None:
        self.stages = stages
        self._member = Member(board, work)
        self._clock = Clock()
        self._changed = threading.Condition()
        self._work: StageClass | None = None
        self._current = -1
        self._under_way = 0
        self._alone = 0
        """Shards that have this worker to themselves, or wait for that."""

    def __call__(self, _: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """A turn: the receipt of one shard, or none where nothing is left to do."""
        claim = self._member.claim()
        index, receipt = -1, NOTHING
        if claim is not None:
            index, number = claim.shard
            try:
                receipt = self.stages[index].target.receipt(number) or self._publish(index, number, after=claim.after)
            finally:
                self._member.turn_over(claim.shard)
        return {"stage": [index], **{key: [value] for key, value in asdict(receipt).items()}}

    @contextmanager
    def _with_class(self, index: int, *, alone: bool) -> Iterator[StageClass]:
        """The stage's class; another one gives way once its shards are done, and ``alone`` everybody does."""
        with self._changed:
            self._alone += alone
            self._changed.wait_for(
                lambda: not self._under_way if alone else not self._alone and self._fits(index),
            )
            self._under_way += 1
        try:
            with self._changed:
                if index != self._current:
                    self._work, self._current = None, -1
                    gc.collect()  # its memory is the next one's
                    self._work = self.stages[index].start()
                    self._current = index
                    self._changed.notify_all()
                work = self._work
            assert work is not None
            yield work
            del work
        finally:
            with self._changed:
                self._under_way -= 1
                self._alone -= alone
                self._changed.notify_all()

    def _fits(self, index: int) -> bool:
        """Whether a shard of a stage can go beside what is under way."""
        return index == self._current or not self._under_way

    def _publish(self, index: int, number: int, *, after: str | None) -> Receipt:
        stage = self.stages[index]
        attempt = Attempt(Folder(stage.attempts), number, after=after)
        with self._with_class(index, alone=attempt.one_by_one) as work, self._clock.account() as seconds:
            attempt.begin(self._member.process)
            started = time.perf_counter()
            try:
                rows = Folder(stage.source).read_table(shard_name(number), stage.source_schema).to_pylist()
                output = processed(work, rows, stage.name, attempt)
                own = seconds()
                beside = min(own, output.beside_seconds * own / (time.perf_counter() - started))
                receipt = stage.target.publish(number, output, len(rows), own - beside)
                if stage.beside is not None and output.beside is not None:
                    # Second: should it be lost, that stage makes it of what is published.
                    stage.beside.publish(number, output.beside, len(output.rows), beside)
            except Exception:
                attempt.give_up()
                raise
            attempt.end()
        return receipt


def processed(work: StageClass, rows: list[Any], stage: str, attempt: Attempt) -> StageOutput:
    """What a stage class makes of a shard's rows: together, or one by one where one of them may end the process."""
    if not attempt.one_by_one:
        return work(rows)
    together = [row for row in rows if attempt.is_cleared(row["sample_id"])]
    outputs = [work(together)] if together else []
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row["sample_id"], []).append(row)
    for name, group in groups.items():
        if attempt.is_cleared(name):
            continue
        if attempt.is_quarantined(name):
            crashed = RowError("crashed", f"sample {name} ended its worker each time it ran alone", "look at its image")
            outputs.append(StageOutput(errors=[schemas.error_row(name, stage, crashed) for _ in group]))
            continue
        with attempt.alone(name):
            outputs.append(work(group))
    return _joined(outputs, [row["sample_id"] for row in rows])


def run_shards(stages: Sequence[ShardedStage], board: Any, counts: Counts, show: Show) -> None:
    """Do the missing shards of stages that need the same resources, in their order, with one pool of actors.

    Args:
        stages: what is to be done.
        board: where actors claim shards (``board.put_up``).
        counts: is kept up to date, over all stages.
        show: is told of it now and then.

    Raises:
        StageError: a stage failed; what was finished stays.
    """
    left = {(index, shard) for index, stage in enumerate(stages) for shard in stage.missing()}
    for receipt in [receipt for stage in stages for receipt in stage.target.receipts()]:
        counts.before(receipt.rows_in, receipt.rows_failed)
    while left:
        before = len(left)
        _one_pass(stages, board, left, counts, show)
        if len(left) == before:
            raise StageError(f"stage {stages[0].name!r}: {before} shards were not done", "run it again to go on")


def _one_pass(stages: Sequence[ShardedStage], board: Any, left: set[Shard], counts: Counts, show: Show) -> None:
    """Do shards with one pool of actors; those whose receipt came are no longer left.

    Some may stay: turns run out where shards were done twice, by a worker that was taken for lost and by another.
    """
    import ray

    resources, work = stages[0].resources, uuid.uuid4().hex
    ray.get(board.post.remote(work, sorted(left)))
    compute, at_once = pool(resources, len(left), max(stage.at_once for stage in stages))
    # More turns than shards: in the last ones actors wait for what one that is lost, with its turns, may leave.
    turns = len(left) + min(resources.replicas, len(left)) * TURNS_AHEAD * at_once
    # Blocks of the driver: the read tasks of ray.data.range would start further workers.
    receipts = ray.data.from_items([{"turn": 0}] * turns, override_num_blocks=turns).map_batches(
        checked_actor(partial(ShardActor, stages, board, work), stages[0].name),
        batch_size=1,
        compute=compute,
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        accelerator_type=resources.accelerator_type,
    )
    let_go = threading.Timer(SETTLE_SECONDS, _kill_all, (board, work))
    try:
        with unwrap_errors(stages[0].name), shown(counts, board, work, show):
            for row in _rows(receipts):
                shard = row["stage"], row["shard"]
                board.done.remote(work, shard)
                if shard in left:
                    left.remove(shard)
                    counts.add(row["rows_in"], row["rows_failed"], row["tokens"])
                    if not left:
                        let_go.start()
    except JsfreeError:
        if left:  # otherwise it is what became of the actors that had to be let go
            raise
    finally:
        let_go.cancel()
        board.take_down.remote(work)


def _kill_all(board: Any, work: str) -> None:
    """End a pass whose shards are all done: an actor that was lost may wait for a place to have its turns again."""
    import ray

    for actor in ray.get(board.actors.remote(work)):
        ray.kill(actor)


def _rows(receipts: Dataset) -> Iterator[dict[str, int]]:
    """Receipts as soon as they are there. With prefetching one would be held back until the next has come."""
    for batch in receipts.iter_batches(batch_size=None, prefetch_batches=0):
        for values in zip(*batch.values(), strict=True):
            yield {key: int(value) for key, value in zip(batch, values, strict=True)}


def pool(resources: Resources, shards: int, at_once: int) -> tuple[ActorPoolStrategy, int]:
    """The actors for so many shards, all from the start or growing with the room that the cluster has.

    And how many shards each has under way.
    """
    from ray.data import ActorPoolStrategy

    most = min(resources.replicas, shards)
    # Shared out evenly where there are few: an actor that is up first must not take what others could do.
    at_once = max(1, min(at_once, -(-shards // most)))
    calls = {
        "max_concurrent_calls_per_actor": at_once,
        "max_tasks_in_flight_per_actor": TURNS_AHEAD * at_once,
        "enable_true_multi_threading": True,
    }
    if resources.min_replicas is None:
        return ActorPoolStrategy(size=most, **calls), at_once
    return ActorPoolStrategy(min_size=min(resources.min_replicas, most), max_size=most, **calls), at_once


def total(name: str, table: Table, max_failed_fraction: float) -> Manifest:
    """The manifest of a finished stage ``name``, added up from its shards; fingerprint and wall time are its caller's.

    Excluded rows are no failures; ``facts["excluded"]`` counts them where there are any.

    Raises:
        StageError: more rows failed than the run allows.
    """
    receipts = table.receipts()
    rows_in, failed = sum(r.rows_in for r in receipts), sum(r.rows_failed for r in receipts)
    if failed > max_failed_fraction * rows_in:
        errors = (row for rows in scan(Folder(table.errors), schemas.ERRORS) for row in rows.to_pylist())
        messages = (row["message"] for row in errors if row["kind"] != schemas.EVALUATION_IMAGE)
        raise StageError(
            f"stage {name!r}: {failed} of {rows_in} rows failed, more than max_failed_fraction"
            f" ({max_failed_fraction:g}) allows; first: {next(messages, 'not recorded')}",
            f"see {table.errors}",
        )
    return Manifest(
        rows_in=rows_in,
        rows_out=sum(r.rows_out for r in receipts),
        rows_failed=failed,
        device_seconds=sum(r.device_seconds for r in receipts),
        tokens=sum(r.tokens for r in receipts),
        facts={"excluded": excluded} if (excluded := sum(r.rows_excluded for r in receipts)) else {},
    )


def _joined(outputs: Sequence[StageOutput], order: Sequence[str]) -> StageOutput:
    """Outputs of parts of a shard as of the whole, its rows in their order."""
    place = {name: position for position, name in enumerate(order)}
    besides = [each.beside for each in outputs if each.beside is not None]
    return StageOutput(
        rows=sorted((row for each in outputs for row in each.rows), key=lambda row: place[row["sample_id"]]),
        errors=sorted((row for each in outputs for row in each.errors), key=lambda row: place[row["sample_id"]]),
        tokens=sum(each.tokens for each in outputs),
        beside=_joined(besides, order) if besides else None,
        beside_seconds=sum(each.beside_seconds for each in outputs),
    )
