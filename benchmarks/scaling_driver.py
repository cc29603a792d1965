"""Cost of a shard and of a worker for the driver and its board, measured without a cluster.

    python benchmarks/scaling.py --part driver

- board: microseconds of a claim and its end, by number of waiting shards and known workers;
- turns: time and memory of Ray Data's read tasks, one per turn, which the driver creates before a pass;
- files: microseconds per shard to list a folder and to read the footers of its shards, on a local disk.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from jsfree.run.folder import Folder, shard_name
from ray_jobs.shards.board import Board
from ray_jobs.shards.receipts import Receipt

SHARDS = (1_000, 10_000, 100_000)
WORKERS = (8, 800, 8_000)
CLAIMS = 1_000
TURNS = (1_000, 10_000)
FILES = 5_000


def driver(_: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure all parts."""
    figures = {
        "microseconds_a_claim": {f"{shards} shards, 8 workers": claim(shards, 8) for shards in SHARDS}
        | {f"10000 shards, {workers} workers": claim(10_000, workers) for workers in WORKERS},
        "read_tasks": {f"{turns} turns": read_tasks(turns) for turns in TURNS},
        "files": files(),
    }
    costs = figures["microseconds_a_claim"]
    cost = costs[f"{SHARDS[-1]} shards, 8 workers"] / costs[f"{SHARDS[0]} shards, 8 workers"]
    return {f"claim_{SHARDS[-1]}_over_{SHARDS[0]}_shards_cost": dict.fromkeys(("median", "min", "max"), cost)}, figures


def claim(shards: int, workers: int) -> float:
    """Mean microseconds of a claim and its receipt."""
    board = Board()
    board.post("work", [(0, number) for number in range(shards)])
    for worker in range(workers):
        board.join("work", f"a{worker}", f"p{worker}", f"n{worker // 8}")
    started = time.process_time()
    for number in range(CLAIMS):
        process = f"p{number % workers}"
        claimed = board.claim("work", process, str(number)).claim
        assert claimed is not None
        shard = claimed.shard
        receipt = Receipt(shard=shard[1], rows_in=1, rows_out=1, rows_failed=0, tokens=1, device_seconds=1.0)
        board.finish("work", shard, receipt)
    return 1e6 * (time.process_time() - started) / CLAIMS


def read_tasks(turns: int) -> dict[str, float]:
    """Time and memory of Ray Data's objects for a range of ``turns`` blocks."""
    from ray.data._internal.datasource.range_datasource import RangeDatasource

    RangeDatasource(1).get_read_tasks(1)  # imports
    tracemalloc.start()
    started = time.process_time()
    tasks = RangeDatasource(turns).get_read_tasks(turns)
    seconds, held = time.process_time() - started, tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(tasks) == turns
    return {"microseconds_a_turn": 1e6 * seconds / turns, "bytes_a_turn": held / turns}


def files() -> dict[str, float]:
    """Time to list a folder of small shards and to read their footers."""
    with TemporaryDirectory(prefix="scaling-") as path:
        folder = Folder(path)
        folder.write_table(shard_name(0), pa.table({"sample_id": ["a"]}))
        content = folder.read(shard_name(0))
        for number in range(1, FILES):
            with open(f"{path}/{shard_name(number)}", "wb") as file:
                file.write(content)
        started = time.perf_counter()
        assert len(folder.shards()) == FILES
        listed = time.perf_counter()
        assert folder.count_rows() == FILES
        ended = time.perf_counter()
    return {
        "list_microseconds_a_shard": 1e6 * (listed - started) / FILES,
        "footer_microseconds_a_shard": 1e6 * (ended - listed) / FILES,
    }
