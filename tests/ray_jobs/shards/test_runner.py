"""Shards on real Ray actors: rows that kill their worker, overlapping shards, storage failures, and figures."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest

from jsfree import schemas
from jsfree.config import Resources
from jsfree.errors import StageError, StorageError
from jsfree.run.folder import Folder, shard_name
from jsfree.schemas import StageOutput
from ray_jobs.shards.actor import ShardedStage
from ray_jobs.shards.board import start_board
from ray_jobs.shards.progress import GAUGES, Clock, Counts, Figures, Gauges
from ray_jobs.shards.runner import run_shards
from ray_jobs.shards.tables import Table, total_manifest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
ROWS = pa.schema([("sample_id", pa.string())])


@pytest.fixture(scope="module")
def board(ray_session) -> object:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    return start_board()


class Deadly:
    """Exits its process at deadly rows. Logs which rows run together."""

    def __init__(self, folder: str, deadly: set[str], device: str) -> None:
        self.folder = Path(folder)
        self.deadly = deadly

    def __call__(self, rows) -> StageOutput:
        names = [row["sample_id"] for row in rows]
        with open(self.folder / "calls.jsonl", "a") as log:
            log.write(json.dumps(names) + "\n")
        if self.deadly & set(names):
            os._exit(1)
        failed = [
            {"sample_id": each, "stage": "deadly", "kind": "bad", "message": f"{each} is bad"}
            for each in names
            if each.startswith("bad")
        ]
        return StageOutput(
            rows=[row for row in rows if not row["sample_id"].startswith("bad")], errors=failed, tokens=7
        )


class Overlapping:
    """A model that waits until two shards are in progress."""

    def __init__(self, device: str) -> None:
        self.together = threading.Barrier(2, timeout=60)

    def __call__(self, rows) -> StageOutput:
        self.together.wait()
        time.sleep(0.2)
        return StageOutput(rows=list(rows))


class Failing:
    def __init__(self, device: str) -> None:
        pass

    def __call__(self, rows) -> StageOutput:
        raise ValueError("no good")


class Copying:
    """Returns the rows after a short time."""

    def __init__(self, device: str) -> None:
        pass

    def __call__(self, rows) -> StageOutput:
        time.sleep(0.1)
        return StageOutput(rows=list(rows))


def stage_of(path: Path, shards: list[list[str]], build, **arguments) -> ShardedStage:
    source = Folder(f"{path}/source")
    for number, names in enumerate(shards):
        source.write_table(shard_name(number), pa.table({"sample_id": names}, schema=ROWS))
    return ShardedStage(
        name="deadly",
        source=source.uri,
        source_schema=ROWS,
        target=Table(f"{path}/target", ROWS, f"{path}/errors"),
        stage_class=build,
        arguments=arguments,
        resources=Resources(replicas=1),
        attempts=f"{path}/attempts",
    )


def run(stage: ShardedStage, board) -> list[Figures]:
    shown: list[Figures] = []
    counts = Counts(sum(Folder(stage.source)._count_shard_rows(number) for number in Folder(stage.source).shards()))
    run_shards([stage], board, counts, shown.append)
    return shown


def names(table: pa.Table) -> list[str]:
    return table["sample_id"].to_pylist()


def test_only_the_row_that_kills_its_worker_is_quarantined(tmp_path, board):
    shards = [["a", "b", "deadly", "bad", "c"], ["d", "e"]]
    stage = stage_of(tmp_path, shards, Deadly, folder=str(tmp_path), deadly={"deadly"})
    shown = run(stage, board)
    assert names(Folder(stage.target.uri).read_shards(ROWS)) == ["a", "b", "c", "d", "e"]
    errors = Folder(stage.target.errors).read_shards(schemas.ERRORS).to_pylist()
    assert [(each["sample_id"], each["kind"]) for each in errors] == [("deadly", "crashed"), ("bad", "bad")]
    assert "ended its worker process" in errors[0]["message"]
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert calls.count(["deadly"]) == 2  # it kills its worker twice when run alone
    assert sum("deadly" in call and len(call) > 1 for call in calls) == 1
    attempts = Folder(stage.attempts)
    attempts.remove_partial_files()  # a worker may have died while it wrote
    assert attempts.names() == []
    assert shown[-1].rows == shown[-1].rows_in_all == 7
    assert shown[-1].rows_failed == 2
    manifest = total_manifest(stage.name, stage.target, 0.5)
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_failed) == (7, 5, 2)


def test_a_deadly_row_does_not_blame_rows_of_another_shard(tmp_path, board):
    shards = [["a", "deadly", "b"], ["c", "d", "mortal", "e"]]
    stage = stage_of(tmp_path, shards, Deadly, folder=str(tmp_path), deadly={"deadly", "mortal"})
    run(stage, board)
    assert names(Folder(stage.target.uri).read_shards(ROWS)) == ["a", "b", "c", "d", "e"]
    errors = Folder(stage.target.errors).read_shards(schemas.ERRORS).to_pylist()
    assert [each["sample_id"] for each in errors] == ["deadly", "mortal"]


def test_an_actor_works_on_several_shards_at_once(tmp_path, board):
    stage = stage_of(tmp_path, [["a"], ["b"], ["c"], ["d"]], Overlapping)
    run(stage, board)
    assert names(Folder(stage.target.uri).read_shards(ROWS)) == ["a", "b", "c", "d"]
    seconds = [receipt.device_seconds for receipt in stage.target.receipts()]
    assert 0.3 < sum(seconds) < 3  # two at a time: their time is divided, not counted twice


def test_an_exception_fails_the_stage_and_blames_no_row(tmp_path, board):
    stage = stage_of(tmp_path, [["a"]], Failing)
    with pytest.raises(StageError, match="no good"):
        run(stage, board)
    assert Folder(stage.attempts).names() == []


MANY = [[f"{number}-{row}-{uuid.uuid4()}" for row in range(50)] for number in range(24)]


def has_each_row_once(stage: ShardedStage) -> bool:
    there = names(Folder(stage.target.uri).read_shards(ROWS))
    return sorted(there) == sorted(name for shard in MANY for name in shard)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounts a small disk")
def test_a_stage_resumes_after_a_full_disk(tmp_path, board):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        stage = stage_of(tmp_path, MANY, Copying)
        stage = replace(stage, target=Table(f"{disk}/target", ROWS, f"{disk}/errors"))
        with pytest.raises(StorageError, match=f"{disk}/target/shard-000.*No space left on device"):
            run(stage, board)
        written = Folder(stage.target.uri).names()
        assert 0 < len(written) < len(MANY)
        assert not [name for name in written if name.startswith(".")]  # no partially written files remain
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        run(stage, board)
        assert has_each_row_once(stage)
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_a_stage_resumes_after_its_folder_was_unavailable(tmp_path, board):
    stage = stage_of(tmp_path, MANY, Copying)
    target = Path(stage.target.uri)

    def take_away(figures: Figures) -> None:
        if figures.rows and target.is_dir() and not (tmp_path / "kept").exists():
            target.rename(tmp_path / "kept")
            target.touch()  # nothing can be written below a file

    with pytest.raises(StorageError, match=str(target)):
        run_shards([stage], board, Counts(1200), take_away)
    target.unlink()
    (tmp_path / "kept").rename(target)
    run(stage, board)
    assert has_each_row_once(stage)


def test_figures_count_the_live_actors(tmp_path, board):
    stage = stage_of(tmp_path, [["a"], ["b"], ["c"], ["d"]], Overlapping)
    assert max(figures.actors for figures in run(stage, board)) == 1


def test_figures_are_exported_as_ray_metrics(board):
    import ray

    figures = Figures(
        rows=5,
        rows_in_all=10,
        rows_failed=1,
        rows_per_second=2.5,
        tokens_per_second=100.0,
        seconds_left=2.0,
        actors=3,
    )
    Gauges("runs/x", "pairs").set(figures)
    address = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    deadline, found = time.monotonic() + 60, {}
    while len(found) < len(GAUGES):
        assert time.monotonic() < deadline, found
        time.sleep(1)
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = dict(
            re.match(r"ray_jsfree_(\w+)\{.*stage=\"pairs\".*\} (.*)", line).groups()
            for line in lines
            if line.startswith("ray_jsfree_")
        )
    assert {name: float(value) for name, value in found.items()} == asdict(figures)


def test_a_clock_divides_time_among_concurrent_shards():
    clock = Clock()
    with clock.account() as first:
        time.sleep(0.05)
        with clock.account() as second:
            time.sleep(0.1)
            assert 0.04 < second() < 0.09
        assert 0.09 < first() < 0.15


def test_the_speed_counts_only_this_drivers_shards():
    counts = Counts(100)
    counts.add_earlier(50, 1)
    assert counts.figures(0).seconds_left is None
    counts.start()
    time.sleep(0.1)
    counts.add(25, 2, 1000)
    figures = counts.figures(2)
    assert (figures.rows, figures.rows_failed, figures.actors) == (75, 3, 2)
    assert 100 < figures.rows_per_second < 250
    assert figures.tokens_per_second == pytest.approx(40 * figures.rows_per_second)
    assert figures.seconds_left == pytest.approx(25 / figures.rows_per_second)
