"""The folder on a node that keeps models from elsewhere, filled once however many processes ask.

A copy is keyed by content, never by its address alone: by the folder's ``checksums.json`` where there is one, else
by the version marks (ETag, time, size) that the store gives its files. A model that is published again at the same
address is thus fetched again. A copy is made beside its place, checked and then renamed: it is there whole or not.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from filelock import FileLock

from jsfree.config import ModelFiles
from jsfree.errors import ModelError
from jsfree.models.contents import CHECKSUMS, Kind, require, require_folder, verify_checksums
from jsfree.run.filesystems import filesystem_of, free_bytes, reason

log = logging.getLogger(__name__)

SPARE_BYTES = 1_000_000_000
"""What must stay free on the cache's disk."""
VERSION_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "created")


def cache_root(files: ModelFiles) -> Path | None:
    """The folder that settings or environment name, if they name one."""
    named = files.cache or os.environ.get("JSFREE_CACHE")
    return Path(named).expanduser() if named else None


def fetched(uri: str, kind: Kind, files: ModelFiles) -> Path:
    """The local copy of a model folder on another filesystem.

    Raises:
        ModelError: there is no such folder, a file is missing or damaged, or the disk is too small.
    """
    remote = RemoteFolder(uri, kind)
    remote.require()
    cache = (cache_root(files) or Path.home() / ".cache" / "jsfree") / "models"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / remote.content_key()
    if not target.is_dir():
        with FileLock(f"{target}.lock"):
            if not target.is_dir():  # another process was first
                _copy(remote, target)
    return target


class RemoteFolder:
    """A model's folder on a filesystem that fsspec reaches; only the model's own files count."""

    def __init__(self, uri: str, kind: Kind) -> None:
        self.uri, self.kind = uri, kind
        if uri.startswith(("http://", "https://")):
            raise ModelError(
                f"{kind.name} {uri!r}: a web address lists no files", "give a hub id, a folder or s3://..."
            )
        try:
            self.filesystem, self.path = filesystem_of(uri.rstrip("/"))
            self.filesystem.invalidate_cache()  # it may have been published since this process last looked
            entries = self.filesystem.ls(self.path, detail=True) if self.filesystem.isdir(self.path) else []
        except (ImportError, ValueError) as error:
            raise ModelError(f"{kind.name} {uri!r}: {error} (on every node)") from error
        except Exception as error:  # every store's client has errors of its own
            raise ModelError(f"{kind.name} {uri!r} cannot be read: {reason(error)}") from error
        if not entries:
            raise ModelError(f"{kind.name} {uri!r}: there is no such folder, or it is empty")
        self.names = [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]
        self.files: dict[str, Mapping[str, Any]] = {
            name: entry
            for entry in entries
            if entry["type"] == "file" and kind.takes(name := entry["name"].rsplit("/", 1)[-1])
        }

    def require(self) -> None:
        """Check that the model is whole.

        Raises:
            ModelError: it is not.
        """
        require(self.kind, self.uri, self.names, self.read)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        try:
            return bytes(self.filesystem.cat_file(f"{self.path}/{name}"))
        except Exception as error:  # every store's client has errors of its own
            raise ModelError(f"{self.uri}/{name} cannot be read: {reason(error)}") from error

    def content_key(self) -> str:
        """A name for what is in the folder: another content has another."""
        if CHECKSUMS in self.files:
            return hashlib.sha256(self.read(CHECKSUMS)).hexdigest()[:32]
        marks = [
            (name, entry.get("size"), *(str(entry[mark]) for mark in VERSION_MARKS if mark in entry))
            for name, entry in sorted(self.files.items())
        ]
        return hashlib.sha256(repr((self.uri, marks)).encode()).hexdigest()[:32]

    def copy_to(self, folder: Path, *, weights: bool = True) -> None:
        """Copy the model's files, or those beside its weights."""
        folder.mkdir(parents=True, exist_ok=True)
        names = [name for name in self.files if weights or not fnmatchcase(name, self.kind.weights)]
        try:
            self.filesystem.get([f"{self.path}/{name}" for name in names], [str(folder / name) for name in names])
        except Exception as error:  # every store's client has errors of its own
            raise ModelError(
                f"{self.kind.name} {self.uri!r} cannot be fetched into {folder}: {reason(error)}"
            ) from error


def _copy(remote: RemoteFolder, target: Path) -> None:
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    needed = sum(int(entry.get("size") or 0) for entry in remote.files.values())
    require_space(target.parent, needed, f"{remote.kind.name} {remote.uri!r}")
    log.info("fetching %s, %.1f GB", remote.uri, needed / 1e9)
    try:
        remote.copy_to(partial)
        verify_checksums(partial, remote.uri)
        require_folder(remote.kind, remote.uri, partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check that a folder's disk has room for a model.

    Raises:
        ModelError: it has not.
    """
    free = free_bytes(str(folder))
    if needed and needed + SPARE_BYTES > free:
        raise ModelError(
            f"{what} needs {needed / 1e9:.1f} GB (and {SPARE_BYTES / 1e9:.0f} GB to spare), but the disk of {folder}"
            f" has {free / 1e9:.1f} GB free",
            "delete old models there, or name a larger disk with models.cache",
        )
