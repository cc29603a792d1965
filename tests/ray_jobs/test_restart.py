"""``--restart``: after an interrupted removal, old output is never used with new settings."""

import os
import shutil
from contextlib import contextmanager, suppress
from itertools import count

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jsfree import config, schemas
from jsfree.errors import RunError
from jsfree.run.folder import shard_name
from jsfree.run.run import INPUTS, Manifest, Run
from jsfree.run.stages import PARTS, STAGES
from ray_jobs.pipeline import remove_from

STAGES_OF = {
    1: ["samples", "scored", "train", "captions/m0-greedy", "captions/m1-greedy", "captions_scored/m1-greedy"],
    2: ["samples", "train", "captions_scored/m2-greedy"],
}
"""Some stages of both rounds, in order."""
ORDER = [(number, stage) for number, stages in STAGES_OF.items() for stage in stages]
RESTARTS = {"samples": (1, "samples"), "train": (1, "train"), "captions": (1, "captions/m0-greedy")}
"""Values of ``--restart``, and the first stage each removes."""
ROW = pa.Table.from_pylist(
    [{"sample_id": "a", "stage": "s", "kind": "missing", "message": "gone"}], schema=schemas.ERRORS
)
SHARDS = 2


def make(uri: str) -> Run:
    """Make a finished run of two rounds."""
    run = Run.open(config.build({"run": uri, "rounds": 2}, where="test"))
    for number, stage in ORDER:
        do(run, number, stage, "old")
    for number in STAGES_OF:
        for name in ("model/file", "features/file", "reference/file", "metrics.json", "label_free.json"):
            run.round(number).write(name, b"{}")
    return run


def do(run: Run, number: int, stage: str, made_from: str) -> None:
    fingerprint = f"{made_from} {number} {stage}"
    assert run.begin(number, stage, fingerprint) is None
    for shard in range(SHARDS):
        run.stage(number, stage).write_table(shard_name(shard), ROW)
    for kind in ("errors", "attempts"):
        (run.round(number) / kind / stage).write_table(shard_name(0), ROW)
    run.finish(number, stage, Manifest(fingerprint=fingerprint, rows_in=1, rows_out=1))


@contextmanager
def interrupted(step: int, local: bool):
    """Raise instead of performing removal number ``step`` of a file or folder. Yields the removals so far."""
    calls = [0]

    def stopping(remove):
        def counted(*arguments, **options):
            calls[0] += 1
            if calls[0] == step:
                raise KeyboardInterrupt
            return remove(*arguments, **options)

        return counted

    with pytest.MonkeyPatch.context() as patched:
        for owner, name in [(os, "unlink"), (os, "remove"), (os, "rmdir")] if local else MEMORY_CALLS:
            patched.setattr(owner, name, stopping(getattr(owner, name)))
        yield calls


MEMORY_CALLS = [(MemoryFileSystem, "rm_file"), (MemoryFileSystem, "rmdir")]


def check_same_settings(run: Run) -> None:
    """Check with the old settings: finished stages are complete, and no stage after an unfinished one is finished."""
    done: dict[tuple[int, str], bool] = {}
    for number, stage in ORDER:
        part = (number, stage.split("/")[0])
        whole = run.begin(number, stage, f"old {number} {stage}") is not None
        done[part] = done.get(part, True) and whole
        if whole:
            assert run.stage(number, stage).shards() == list(range(SHARDS))
    assert list(done.values()) == sorted(done.values(), reverse=True)
    for number in STAGES_OF:
        for name, stage in STAGES.items():
            if run.round(number).exists(stage.mark):
                assert all(done.get((number, part.name), True) for part in PARTS.values() if part.stage == name)


def check_new_settings(run: Run, first: tuple[int, str]) -> bool:
    """Whether new settings are accepted; if so, check that all stages from ``first`` on are empty."""
    for number, stage in ORDER:
        if ORDER.index((number, stage)) < ORDER.index(first):
            assert run.begin(number, stage, f"old {number} {stage}") is not None
            continue
        try:
            assert run.begin(number, stage, f"new {number} {stage}") is None
        except RunError:
            return False
        names = [stage, *(f"{kind}/{stage}" for kind in ("errors", "attempts"))]
        if stage == "train":
            names += ["model", "features", "reference"]
        assert [found for name in names for found in run.stage(number, name).names()] == [INPUTS]
    return True


@pytest.mark.parametrize(("restart", "local"), [*((each, False) for each in RESTARTS), ("captions", True)])
def test_an_interrupted_removal_leaves_no_output_marked_finished(tmp_path, restart, local, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    made = make(str(tmp_path / "run") if local else f"memory://{tmp_path.name}")
    kept = dict(MemoryFileSystem.store), list(MemoryFileSystem.pseudo_dirs)

    def stopped(step: int) -> tuple[Run, bool]:
        """The run after a removal that was interrupted at ``step``, and whether it has that many steps."""
        run = made
        if local:
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(tmp_path / "run", tmp_path / "copy", copy_function=os.link)
            run = Run.existing(str(tmp_path / "copy"))
        else:
            MemoryFileSystem.store.clear()
            MemoryFileSystem.store.update(kept[0])
            MemoryFileSystem.pseudo_dirs[:] = kept[1]
        with interrupted(step, local) as calls, suppress(KeyboardInterrupt):
            remove_from(run, restart)
        return run, calls[0] >= step

    for step in count(1):
        run, is_interrupted = stopped(step)
        if not is_interrupted:
            assert check_new_settings(run, RESTARTS[restart])
            break
        check_new_settings(run, RESTARTS[restart])
        run, _ = stopped(step)
        check_same_settings(run)
        if step % 10 == 0:
            run, _ = stopped(step)
            remove_from(run, restart)
            assert check_new_settings(run, RESTARTS[restart])
    assert step > 20


def test_a_restart_removes_later_rounds_and_keeps_earlier_stages(tmp_path):
    run = make(str(tmp_path / "run"))
    (run.folder / "round-10").write("pairs/_inputs.json", b"{}")
    (run.folder / "round-x").write("notes.txt", b"mine")
    assert run.rounds() == [1, 2, 10]
    remove_from(run, "scored")
    assert run.rounds() == [1]
    assert (run.folder / "round-x").exists("notes.txt")
    assert run.manifest(1, "samples") is not None
    assert run.manifest(1, "scored") is None
