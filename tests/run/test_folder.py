"""Folders write files atomically, store shards, and name the path in errors."""

import subprocess
import sys

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jsfree import schemas
from jsfree.errors import StorageError
from jsfree.run.folder import Folder, shard_name


def test_a_table_is_stored_with_its_metadata(uri):
    folder = Folder(uri)
    rows = [{"sample_id": "a", "stage": "pairs", "kind": "missing", "message": "gone"}]
    folder.write_table(shard_name(3), pa.Table.from_pylist(rows, schema=schemas.ERRORS), {"tokens": 7})
    assert folder.shards() == [3]
    assert folder.table_metadata(shard_name(3)) == {"tokens": 7}
    assert folder.count_rows() == 1
    assert folder.read_shards(schemas.ERRORS).to_pylist() == rows


def test_shards_are_sorted_by_number_not_by_name(uri):
    folder = Folder(uri)
    for number in (1_234_567, 100_000, 99_999, 2, 10):
        folder.write_table(shard_name(number), schemas.ERRORS.empty_table())
    for name in ("shard-1.parquet", "shard-00003.parquet.tmp", "xshard-00004.parquet"):
        folder.write(name, b"no shard")
    assert folder.shards() == [2, 10, 99_999, 100_000, 1_234_567]


class Caching(MemoryFileSystem):
    """An object store whose client returns cached listings, like real clients."""

    protocol = "cachingmemory"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("cachingmemory://"))

    def ls(self, path, detail=True, **options):
        key = self._strip_protocol(path)
        if key not in self.dircache:
            self.dircache[key] = super().ls(path, detail=True)
        return self.dircache[key] if detail else [entry["name"] for entry in self.dircache[key]]

    def info(self, path, **options):
        key = self._strip_protocol(path)
        parent = self._parent(key)
        if parent in self.dircache:
            for entry in self.dircache[parent]:
                if entry["name"] == key:
                    return entry
            raise FileNotFoundError(path)
        return super().info(path)

    def exists(self, path, **options):
        try:
            return bool(self.info(path))
        except FileNotFoundError:
            return False

    def isdir(self, path):
        return self.exists(path) and self.info(path)["type"] == "directory"

    def invalidate_cache(self, path=None):
        if path is None:
            self.dircache.clear()
        else:
            self.dircache.pop(self._strip_protocol(path), None)


def test_files_written_by_other_processes_are_found_despite_cached_listings(tmp_path):
    fsspec.register_implementation("cachingmemory", Caching, clobber=True)
    ours = Folder(f"cachingmemory://{tmp_path.name}/run")
    theirs = Folder(ours.uri)
    theirs.filesystem = Caching(skip_instance_cache=True)
    ours.write("first/a", b"1")
    seen = ours.filesystem.ls(ours.path), ours.filesystem.ls(ours.path + "/first")
    assert all(seen)
    theirs.write("first/b", b"22")
    theirs.write("second/c", b"333")
    assert not ours.filesystem.exists(ours.path + "/first/b")  # the cached listing is stale
    assert ours.exists("first/b")
    assert ours.names() == ["first", "second"]
    assert ours.folders() == ["first", "second"]
    [*map(ours.filesystem.ls, (ours.path, ours.path + "/first"))]
    theirs.write("first/d", b"4444")
    assert ours.sizes() == {"first/a": 1, "first/b": 2, "first/d": 4, "second/c": 3}
    [*map(ours.filesystem.ls, (ours.path, ours.path + "/first"))]
    theirs.write("first/e", b"5")
    ours.remove("first")
    assert theirs.names() == ["second"]
    [*map(ours.filesystem.ls, (ours.path, ours.path + "/second"))]
    theirs.remove("second/c")
    assert not ours.exists("second/c")


def test_an_empty_path_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="is empty"):
        Folder("")
    assert Folder("/").path == "/"
    assert Folder("file:///").path == "/"


def test_a_failed_write_keeps_the_old_file_and_leaves_no_partial_file(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    folder.write("a.txt", b"old")

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"a.txt cannot be written: No space left on device"):
        folder.write("a.txt", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert folder.read("a.txt") == b"old"


def test_a_file_written_in_parts_appears_only_when_complete(uri):
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


def test_an_unusable_path_is_named_in_the_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"file/run/a\.yaml cannot be written"):
        Folder(str(tmp_path / "file" / "run")).write("a.yaml", b"")
    with pytest.raises(StorageError, match="nowhere://x"):
        Folder("nowhere://x")
    with pytest.raises(StorageError, match="does not have the columns of this stage"):
        Folder(str(tmp_path)).read_table("file", schemas.ERRORS)


def test_only_partial_files_of_killed_writers_are_removed(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("kept.json", b"{}")
    (tmp_path / ".hidden").touch()
    code = f"""
import os
from jsfree.run.folder import Folder
os.fsync = lambda _: os._exit(1)
Folder({str(tmp_path)!r}).write("shard-00000.parquet", b"half")
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(folder.names()) == 3
    folder.remove_partial_files()
    assert folder.names() == [".hidden", "kept.json"]
    (Folder(str(tmp_path)) / "none").remove_partial_files()


@pytest.mark.parametrize("name", ["run", "run [v1]", "r*n?", "a::b"])
def test_upload_and_download_copy_all_files_under_any_name(name, tmp_path):
    source, target = tmp_path / "from" / name, tmp_path / "to" / name
    (source / "below [2]").mkdir(parents=True)
    (source / "below [2]" / "x?.txt").write_bytes(b"x")
    (source / "y.txt").write_bytes(b"y")
    for uri in (str(tmp_path / "local" / name), f"memory://{tmp_path.name}/{name}"):
        Folder(uri).upload(str(source))
        Folder(uri).download(str(target))
        assert {path.relative_to(target).as_posix() for path in target.rglob("*.txt")} == {"below [2]/x?.txt", "y.txt"}
        assert (target / "below [2]" / "x?.txt").read_bytes() == b"x"
        (target / "y.txt").unlink()


@pytest.mark.parametrize("name", ["a*", "[a]", "a?"])
def test_remove_does_not_treat_a_name_as_a_pattern(name, tmp_path):
    for base in (str(tmp_path), f"memory://{tmp_path.name}"):
        for each in ("a", "ab", name):
            Folder(f"{base}/{each}").write("pairs/x.json", b"{}")
        Folder(f"{base}/{name}").remove("pairs")
        assert not Folder(f"{base}/{name}/pairs").exists("x.json")
        assert Folder(f"{base}/a/pairs").exists("x.json")
        assert Folder(f"{base}/ab/pairs").exists("x.json")
