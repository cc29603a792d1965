"""Running a stage class over shards with Ray Data: one file in, one file out, finished files never redone.

Ray Data schedules shard numbers over a pool of actors. An actor reads its shard, runs the stage class, publishes
the rows that failed and then the shard itself, and returns a receipt; the receipt also travels in the shard's
metadata, so that a resumed stage counts what was done before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from jsfree import schemas
from jsfree.config import Resources
from jsfree.errors import StageError
from jsfree.models import device_of
from jsfree.schemas import StageOutput
from jsfree.storage import Folder, Manifest, shard_name
from ray_jobs.cluster import explained
from ray_jobs.console import Update
from ray_jobs.same_code import carried_actor

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy


class StageClass(Protocol):
    """A plain class: load in ``__init__`` (last argument ``device``), one batch of rows a call."""

    def __call__(self, rows: Sequence[Any]) -> StageOutput:
        """Process rows."""


@dataclass(frozen=True)
class Receipt:
    """What a shard cost and gave."""

    shard: int
    rows_in: int
    rows_out: int
    rows_failed: int
    tokens: int
    device_seconds: float


@dataclass(frozen=True)
class ShardedStage:
    """Everything an actor needs to turn shards of one table into shards of the next."""

    name: str
    source: str
    source_schema: pa.Schema
    target: str
    target_schema: pa.Schema
    errors: str
    build: Callable[..., StageClass]
    arguments: Mapping[str, Any]
    resources: Resources

    def missing(self) -> list[int]:
        """Shards of the source that the target does not have yet."""
        return sorted(set(Folder(self.source).shards()) - set(Folder(self.target).shards()))

    def receipts(self) -> list[Receipt]:
        """Receipts of all finished shards."""
        target = Folder(self.target)
        return [Receipt(**target.table_facts(shard_name(number))) for number in target.shards()]

    def start(self) -> StageClass:
        """The stage class, built on the device that its replica got."""
        return self.build(**self.arguments, device=device_of(self.resources.gpus))


class ShardActor:
    """The Ray Data actor around stage classes: one at a time, built when its first shard comes."""

    def __init__(self, stages: Sequence[ShardedStage]) -> None:
        self.stages = stages
        self.current = -1
        self._build(0)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        receipts = [
            asdict(self._publish(int(stage), int(shard)))
            for stage, shard in zip(batch["stage"], batch["shard"], strict=True)
        ]
        return {key: [receipt[key] for receipt in receipts] for key in receipts[0]}

    def _build(self, index: int) -> None:
        if index != self.current:
            stage = self.stages[index]
            self.work = stage.start()
            self.current = index

    def _publish(self, index: int, number: int) -> Receipt:
        self._build(index)
        stage, name = self.stages[index], shard_name(number)
        started = time.perf_counter()
        rows = Folder(stage.source).read_table(name, stage.source_schema).to_pylist()
        output = self.work(rows)
        receipt = Receipt(
            number, len(rows), len(output.rows), len(output.errors), output.tokens, time.perf_counter() - started
        )
        if output.errors:
            Folder(stage.errors).write_table(name, pa.Table.from_pylist(output.errors, schema=schemas.ERRORS))
        table = pa.Table.from_pylist(output.rows, schema=stage.target_schema)
        Folder(stage.target).write_table(name, table, asdict(receipt))
        return receipt


def run_shards(stages: Sequence[ShardedStage], update: Update) -> None:
    """Do the missing shards of stages that need the same resources, in their order, with one pool of actors.

    ``update`` gets the number of rows done so far, over all stages.

    Raises:
        StageError: a stage failed; what was finished stays.
    """
    import ray

    missing = [{"stage": index, "shard": shard} for index, stage in enumerate(stages) for shard in stage.missing()]
    done = sum(receipt.rows_in for stage in stages for receipt in stage.receipts())
    resources = stages[0].resources
    update(done, "starting replicas")
    receipts = ray.data.from_items(missing, override_num_blocks=len(missing)).map_batches(
        carried_actor(partial(ShardActor, stages)),
        batch_size=1,
        compute=pool(resources, len(missing)),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        accelerator_type=resources.accelerator_type,
    )
    started, tokens = time.monotonic(), 0
    with explained(stages[0].name):
        for receipt in receipts.iter_rows():
            done += int(receipt["rows_in"])
            tokens += int(receipt["tokens"])
            update(done, f"{tokens / (time.monotonic() - started):,.0f} tokens/s")


def pool(resources: Resources, shards: int) -> ActorPoolStrategy:
    """The actors for so many shards: all from the start, or growing with the room that the cluster has."""
    from ray.data import ActorPoolStrategy

    most = min(resources.replicas, shards)
    if resources.min_replicas is None:
        return ActorPoolStrategy(size=most)
    return ActorPoolStrategy(min_size=min(resources.min_replicas, most), max_size=most)


def total(stage: ShardedStage, max_failed_fraction: float) -> Manifest:
    """The manifest of a finished stage, added up from its shards; fingerprint and wall time are its caller's.

    Raises:
        StageError: more rows failed than the run allows.
    """
    receipts = stage.receipts()
    rows_in, failed = sum(r.rows_in for r in receipts), sum(r.rows_failed for r in receipts)
    if failed > max_failed_fraction * rows_in:
        first = Folder(stage.errors).read_shards(schemas.ERRORS).to_pylist()[0]
        raise StageError(
            f"stage {stage.name!r}: {failed} of {rows_in} rows failed, more than max_failed_fraction"
            f" ({max_failed_fraction:g}) allows; first: {first['message']}; see {stage.errors}"
        )
    return Manifest(
        "",
        rows_in,
        sum(r.rows_out for r in receipts),
        failed,
        0.0,
        sum(r.device_seconds for r in receipts),
        sum(r.tokens for r in receipts),
    )
