"""The Ray Data actor that runs stage classes over shards.

In each turn an actor claims a shard from the board, reads it, runs the stage class, publishes the rows that failed and
then the shard itself, and hands in the receipt. An actor has several shards in progress, so that its model continues
with the next one while the last rows of one finish.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jsfree import schemas
from jsfree.config import Resources
from jsfree.errors import RowError
from jsfree.gpus import device_of
from jsfree.run.folder import Folder, shard_name
from jsfree.schemas import StageOutput
from ray_jobs.shards.attempts import Attempt
from ray_jobs.shards.board import Member
from ray_jobs.shards.progress import Clock
from ray_jobs.shards.receipts import Receipt
from ray_jobs.shards.tables import Table

StageCall = Callable[[list[Any]], StageOutput]
"""An instance of a stage class: processes a batch of rows; may be called from any thread."""


@dataclass(frozen=True, kw_only=True)
class ShardedStage:
    """A stage class to run over the shards of a table, in a round of a run."""

    name: str
    number: int = 1
    """The round."""
    fingerprint: str = ""
    """Hash of everything the stage depends on."""
    source: str
    """Folder of the table that is read."""
    source_schema: pa.Schema
    target: Table
    stage_class: Callable[..., StageCall]
    """Loads its models when called with ``arguments`` and ``device``."""
    arguments: Mapping[str, Any]
    resources: Resources
    attempts: str
    """Folder of the records of shards that were begun."""
    shards_in_flight: int = 2
    """Maximum number of shards that an actor has in progress."""
    second_stage: ShardedStage | None = None
    """The stage whose rows the class also makes, as ``StageOutput.second_stage``."""

    def missing(self) -> list[int]:
        """Numbers of the shards of the source that the target does not have."""
        return sorted(set(Folder(self.source).shards()) - set(Folder(self.target.uri).shards()))

    def build(self) -> StageCall:
        """Load the stage class on the device that Ray assigned to this process."""
        return self.stage_class(**self.arguments, device=device_of(self.resources.gpus))

    def remove_leftovers(self) -> None:
        """Remove what killed workers left: records of attempts and partial files."""
        Folder(self.attempts).remove()
        self.target.remove_partial_files()
        if self.second_stage is not None:
            self.second_stage.target.remove_partial_files()


class ShardActor:
    """Runs stage classes, one class at a time; a class is loaded when its first shard is claimed."""

    def __init__(self, stages: Sequence[ShardedStage], board: Any, work: str) -> None:
        self.stages = stages
        self._member = Member(board, work)
        self._clock = Clock()
        self._changed = threading.Condition()
        self._loaded: StageCall | None = None
        self._index = -1
        """Index of the stage that is loaded."""
        self._in_flight = 0
        self._exclusive = 0
        """Shards that run, or wait to run, with nothing else in this process."""

    def __call__(self, _: object) -> dict[str, list[bool]]:
        """Take a turn: do one shard, or nothing if no shard is left."""
        claim = self._member.claim()
        if claim is not None:
            index, number = claim.shard
            receipt = self.stages[index].target.receipt(number) or self._publish(index, number, after=claim.after)
            self._member.finish(claim.shard, receipt)
        return {"claimed": [claim is not None]}

    @contextmanager
    def _loaded_stage(self, index: int, *, alone: bool) -> Iterator[StageCall]:
        """Yield a stage class, after the shards of another one are done; ``alone``: after all shards are done."""
        with self._changed:
            self._exclusive += alone
            self._changed.wait_for(
                lambda: not self._in_flight if alone else not self._exclusive and self._can_join(index)
            )
            self._in_flight += 1
        try:
            with self._changed:
                if index != self._index:
                    self._loaded, self._index = None, -1
                    gc.collect()  # frees the memory of the other class first
                    self._loaded = self.stages[index].build()
                    self._index = index
                    self._changed.notify_all()
                loaded = self._loaded
            assert loaded is not None
            yield loaded
            del loaded
        finally:
            with self._changed:
                self._in_flight -= 1
                self._exclusive -= alone
                self._changed.notify_all()

    def _can_join(self, index: int) -> bool:
        return index == self._index or not self._in_flight

    def _publish(self, index: int, number: int, *, after: str | None) -> Receipt:
        stage = self.stages[index]
        attempt = Attempt(Folder(stage.attempts), number, after=after)
        with self._loaded_stage(index, alone=attempt.one_by_one) as call, self._clock.account() as seconds:
            attempt.begin(self._member.process)
            started = time.perf_counter()
            try:
                rows = Folder(stage.source).read_table(shard_name(number), stage.source_schema).to_pylist()
                output = process_rows(call, rows, stage.name, attempt)
                total = seconds()
                second = min(total, output.second_stage_seconds * total / (time.perf_counter() - started))
                receipt = stage.target.publish(number, output, len(rows), total - second)
                if stage.second_stage is not None and output.second_stage is not None:
                    # Last: if this shard is lost, the second stage makes it from the published one.
                    stage.second_stage.target.publish(number, output.second_stage, len(output.rows), second)
            except Exception:
                attempt.give_up()
                raise
            attempt.end()
        return receipt


def process_rows(call: StageCall, rows: list[Any], stage: str, attempt: Attempt) -> StageOutput:
    """Run a stage class over the rows of a shard: together, or one by one if a row may kill the process."""
    if not attempt.one_by_one:
        return call(rows)
    together = [row for row in rows if attempt.is_cleared(row["sample_id"])]
    outputs = [call(together)] if together else []
    samples: dict[str, list[Any]] = {}
    for row in rows:
        samples.setdefault(row["sample_id"], []).append(row)
    for name, group in samples.items():
        if attempt.is_cleared(name):
            continue
        if attempt.is_quarantined(name):
            problem = f"sample {name} ended its worker process each time it was processed alone"
            crashed = RowError("crashed", problem, "check its image")
            outputs.append(StageOutput(errors=[schemas.error_row(name, stage, crashed) for _ in group]))
            continue
        with attempt.alone(name):
            outputs.append(call(group))
    return _joined(outputs, [row["sample_id"] for row in rows])


def _joined(outputs: Sequence[StageOutput], order: Sequence[str]) -> StageOutput:
    """Join the outputs of parts of a shard, with rows in the order of their sample ids in ``order``."""
    position = {name: number for number, name in enumerate(order)}
    second = [each.second_stage for each in outputs if each.second_stage is not None]
    return StageOutput(
        rows=sorted((row for each in outputs for row in each.rows), key=lambda row: position[row["sample_id"]]),
        errors=sorted((row for each in outputs for row in each.errors), key=lambda row: position[row["sample_id"]]),
        tokens=sum(each.tokens for each in outputs),
        second_stage=_joined(second, order) if second else None,
        second_stage_seconds=sum(each.second_stage_seconds for each in outputs),
    )
