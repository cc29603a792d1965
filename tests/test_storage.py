"""The run folder: atomic files, manifests, and runs that do not fit."""

import subprocess
import sys

import pyarrow as pa
import pytest

from jsfree import config, schemas
from jsfree.errors import RunError, StorageError
from jsfree.storage import Folder, Manifest, Run, shard_name


def make_run(uri, **settings) -> Run:
    return Run.open(config.build({"run": str(uri), **settings}, where="test"))


@pytest.fixture(params=["local", "memory"])
def uri(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "run")
    return f"memory://{tmp_path.name}/run"


def test_a_table_travels_with_its_facts(uri):
    folder = Folder(uri)
    rows = [{"sample_id": "a", "stage": "pairs", "kind": "missing", "message": "gone"}]
    folder.write_table(shard_name(3), pa.Table.from_pylist(rows, schema=schemas.ERRORS), {"tokens": 7})
    assert folder.shards() == [3]
    assert folder.table_facts(shard_name(3)) == {"tokens": 7}
    assert folder.rows() == 1
    assert folder.read_shards(schemas.ERRORS).to_pylist() == rows


def test_a_stage_is_skipped_resumed_or_refused(uri):
    run = make_run(uri)
    assert run.begin(1, "pairs", "abc") is None  # new
    assert run.begin(1, "pairs", "abc") is None  # half done: go on
    done = run.finish(1, "pairs", Manifest("abc", 2, 2, 0, 1.0, 1.0, 9))
    assert run.begin(1, "pairs", "abc") == done
    hotter = make_run(uri, generate={"decoding": {"temperature": 0.5}})
    with pytest.raises(RunError, match=r"generate.decoding.temperature: 1.0 -> 0.5.*--restart pairs"):
        hotter.begin(1, "pairs", "def")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    folder.write("a.txt", b"old")

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"a.txt cannot be written: No space left on device"):
        folder.write("a.txt", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert folder.read("a.txt") == b"old"


def test_a_file_that_is_written_in_parts_appears_whole_or_not_at_all(uri):
    folder = Folder(uri)
    with folder.create("a.txt") as file:
        file.write(b"old ")
        assert not folder.exists("a.txt")
        file.write(b"text")
    assert folder.read("a.txt") == b"old text"
    with pytest.raises(ZeroDivisionError), folder.create("a.txt") as file:
        file.write(b"new" * (1 // 0))
    assert folder.read("a.txt") == b"old text"
    assert folder.names() == ["a.txt"]


def test_paths_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"file/run/config\.yaml cannot be"):
        make_run(tmp_path / "file" / "run")
    with pytest.raises(StorageError, match="nowhere://x"):
        Folder("nowhere://x")
    with pytest.raises(RunError, match="holds no run"):
        Run.existing(str(tmp_path / "empty"))
    with pytest.raises(StorageError, match="is no table of this stage"):
        Folder(str(tmp_path)).read_table("file", schemas.ERRORS)


def test_what_a_killed_writer_left_is_swept_away_and_nothing_else(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("kept.json", b"{}")
    (tmp_path / ".hidden").touch()
    code = f"""
import os
from jsfree.storage import Folder
os.fsync = lambda _: os._exit(1)
Folder({str(tmp_path)!r}).write("shard-00000.parquet", b"half")
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(folder.names()) == 3
    folder.sweep()
    assert folder.names() == [".hidden", "kept.json"]
    (Folder(str(tmp_path)) / "none").sweep()
