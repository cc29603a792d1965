"""The run folder: atomic files, manifests, and runs that do not fit."""

import subprocess
import sys

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jsfree import config, schemas
from jsfree.errors import RunError, StorageError
from jsfree.run.storage import Folder, Manifest, Run, shard_name


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


def test_shards_have_as_many_digits_as_they_need_and_are_in_the_order_of_their_numbers(uri):
    folder = Folder(uri)
    for number in (1_234_567, 100_000, 99_999, 2, 10):
        folder.write_table(shard_name(number), schemas.ERRORS.empty_table())
    for name in ("shard-1.parquet", "shard-00003.parquet.tmp", "xshard-00004.parquet"):
        folder.write(name, b"no shard")
    assert folder.shards() == [2, 10, 99_999, 100_000, 1_234_567]


def test_rounds_are_in_the_order_of_their_numbers(uri):
    run = make_run(uri)
    for name in ("round-10", "round-2", "round-1", "round-01", "round-x", "round-3.bak", "rounds"):
        (run.folder / name).write("file", b"")
    assert run.rounds() == [1, 2, 10]


@pytest.mark.parametrize("lost", [["_inputs.json"], ["_inputs.json", "_manifest.json"], ["_manifest.json"]])
def test_a_stage_whose_inputs_are_not_recorded_is_refused(uri, lost):
    run = make_run(uri)
    run.begin(1, "pairs", "abc")
    run.stage(1, "pairs").write_table(shard_name(0), schemas.ERRORS.empty_table())
    run.finish(1, "pairs", Manifest("abc", 2, 2, 0, 1.0, 1.0, 9))
    for name in lost:
        run.stage(1, "pairs").remove(name)
    for fingerprint in ("abc", "def"):
        if "_inputs.json" not in lost and fingerprint == "abc":
            assert run.begin(1, "pairs", fingerprint) is None  # resumed
            continue
        with pytest.raises(RunError, match="--restart pairs"):
            run.begin(1, "pairs", fingerprint)


def test_a_manifest_of_other_inputs_is_not_taken(uri):
    run = make_run(uri)
    run.begin(1, "pairs", "abc")
    run.finish(1, "pairs", Manifest("abc", 2, 2, 0, 1.0, 1.0, 9))
    run.stage(1, "pairs").write_json("_inputs.json", {"fingerprint": "def"})
    for fingerprint in ("abc", "def"):
        with pytest.raises(RunError, match="was made with other settings"):
            run.begin(1, "pairs", fingerprint)


def test_a_run_is_where_it_is_given_whatever_it_stores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run("runs/first", seed=7)
    (tmp_path / "runs" / "first").rename(tmp_path / "moved")
    make_run("runs/first", seed=8)
    (tmp_path / "link").symlink_to("moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for given in ("../moved", str(tmp_path / "moved"), "../link", "../elsewhere/../moved/", f"file://{tmp_path}/moved"):
        run = Run.existing(given)
        assert run.config.seed == 7
        run.folder.write("mark", given.encode())
        assert (tmp_path / "moved" / "mark").read_text(encoding="utf-8") == given
        assert Run(run.config).folder.path == run.folder.path
    assert list((tmp_path / "elsewhere").iterdir()) == []


class Caching(MemoryFileSystem):
    """An object store whose client answers from listings that it has seen, as those of real ones do."""

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


def test_what_other_processes_write_is_seen_whatever_the_client_has_cached(tmp_path):
    fsspec.register_implementation("cachingmemory", Caching, clobber=True)
    ours = Folder(f"cachingmemory://{tmp_path.name}/run")
    theirs = Folder(ours.uri)
    theirs.filesystem = Caching(skip_instance_cache=True)
    ours.write("first/a", b"1")
    seen = ours.filesystem.ls(ours.path), ours.filesystem.ls(ours.path + "/first")
    assert all(seen)
    theirs.write("first/b", b"22")
    theirs.write("second/c", b"333")
    assert not ours.filesystem.exists(ours.path + "/first/b")  # what the client itself says
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


def test_an_empty_path_is_not_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="is empty"):
        Folder("")
    assert Folder("/").path == "/"
    assert Folder("file:///").path == "/"


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
from jsfree.run.storage import Folder
os.fsync = lambda _: os._exit(1)
Folder({str(tmp_path)!r}).write("shard-00000.parquet", b"half")
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(folder.names()) == 3
    folder.sweep()
    assert folder.names() == [".hidden", "kept.json"]
    (Folder(str(tmp_path)) / "none").sweep()


@pytest.mark.parametrize("name", ["run", "run [v1]", "r*n?", "a::b"])
def test_folders_are_copied_whole_whatever_their_names(name, tmp_path):
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
def test_removing_a_folder_spares_those_that_its_name_would_match_as_a_pattern(name, tmp_path):
    for base in (str(tmp_path), f"memory://{tmp_path.name}"):
        for each in ("a", "ab", name):
            Folder(f"{base}/{each}").write("pairs/x.json", b"{}")
        Folder(f"{base}/{name}").remove("pairs")
        assert not Folder(f"{base}/{name}/pairs").exists("x.json")
        assert Folder(f"{base}/a/pairs").exists("x.json")
        assert Folder(f"{base}/ab/pairs").exists("x.json")
