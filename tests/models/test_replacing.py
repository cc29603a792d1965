"""Replacing a folder is atomic: after an interruption at any step it has the old or the new content."""

import os
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jsfree.errors import StorageError
from jsfree.models import replacing
from jsfree.models.replacing import replace_folder
from jsfree.run.folder import Folder

OLD = {"a.bin": b"old a", "gone.bin": b"old", "checksums.json": b"old sums", "adapter/x": b"old x"}
NEW = {"a.bin": b"new a", "b.bin": b"new b", "checksums.json": b"new sums", "adapter/x": b"new x"}


def content(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.sizes()}


def write(folder: Folder, files: dict[str, bytes]) -> Folder:
    for name, data in files.items():
        folder.write(name, data)
    return folder


@pytest.fixture
def fresh(tmp_path) -> Path:
    return Path(write(Folder(str(tmp_path / "fresh")), NEW).path)


class Stopping:
    """Raises KeyboardInterrupt instead of call number ``step`` to the wrapped functions."""

    def __init__(self, patch: pytest.MonkeyPatch, step: int, *functions: tuple[object, str]) -> None:
        self.calls, self.step = 0, step
        for owner, name in functions:
            patch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, function):
        def call(*arguments, **options):
            self.calls += 1
            if self.calls == self.step:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call


@pytest.mark.parametrize("exchange", [2, 1 << 10], ids=["in one step", "in two steps"])
def test_an_interrupted_replacement_leaves_the_old_or_new_local_folder(tmp_path, fresh, exchange, monkeypatch):
    monkeypatch.setattr(replacing, "RENAME_EXCHANGE", exchange)  # an unknown flag fails like RENAME_EXCHANGE on NFS
    for step in count(1):
        shutil.rmtree(tmp_path / "place", ignore_errors=True)
        target = write(Folder(str(tmp_path / "place" / "model")), OLD)
        with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
            calls = [(os, "rename"), (os, "fsync"), (shutil, "copy2"), (os, "listdir"), (shutil, "rmtree")]
            stopping = Stopping(patch, step, *calls)
            replace_folder(target, fresh)
        assert content(target) in (OLD, NEW)
        if stopping.calls < step:
            break
        replace_folder(target, fresh)
        assert content(target) == NEW
        assert os.listdir(tmp_path / "place") == ["model"]
    assert step > 8


def test_an_interrupted_replacement_leaves_the_old_or_new_content_in_an_object_store(tmp_path, fresh):
    for step in count(1):
        target = Folder(f"memory://{tmp_path.name}/{step}/model")
        write(target, OLD)
        with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
            calls = [(MemoryFileSystem, name) for name in ("cp_file", "rm_file", "put_file")]
            stopping = Stopping(patch, step, *calls)
            replace_folder(target, fresh)
        places = [target, *(target / name for name in target.folders() if name.startswith(".new."))]
        found = [{name: data for name, data in content(place).items() if ".new." not in name} for place in places]
        assert OLD in found or NEW in found
        if stopping.calls < step:
            break
        replace_folder(target, fresh)
        assert content(target) == NEW
    assert step > 8


def test_replacing_a_linked_folder_replaces_the_target_and_keeps_the_link(tmp_path, fresh):
    target = write(Folder(str(tmp_path / "real")), OLD)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    replace_folder(Folder(str(tmp_path / "link")), fresh)
    assert (tmp_path / "link").is_symlink()
    assert content(target) == NEW
    replace_folder(Folder(str(tmp_path / "new" / "place")), fresh)
    assert content(Folder(str(tmp_path / "new" / "place"))) == NEW


def test_a_full_disk_leaves_the_old_content(tmp_path, fresh, monkeypatch):
    target = write(Folder(str(tmp_path / "model")), OLD)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"model cannot be written: No space left on device"):
        replace_folder(target, fresh)
    assert content(target) == OLD
    assert sorted(os.listdir(tmp_path)) == ["fresh", "model"]
