"""Per-node cache of models from remote filesystems. Each model is downloaded once, even if many processes need it.

The cache key depends on the content: on ``checksums.json`` if the folder has one, otherwise on the version attributes
of its files (ETag, time, size). A model that is published again at the same URI is therefore downloaded again. A
download is verified in a temporary folder and then renamed, so a cached model is always complete.
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
"""Minimum free space on the disk of the cache after a download."""
VERSION_ATTRIBUTES = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "created")


def cache_root(files: ModelFiles) -> Path | None:
    """Return the configured cache folder: ``models.cache``, or the environment variable ``JSFREE_CACHE``."""
    folder = files.cache or os.environ.get("JSFREE_CACHE")
    return Path(folder).expanduser() if folder else None


def download(uri: str, kind: Kind, files: ModelFiles) -> Path:
    """Download a model folder from a remote filesystem, unless it is cached, and return the local folder.

    Raises:
        ModelError: the folder does not exist, a file is missing or damaged, or the disk is too small.
    """
    remote = RemoteFolder(uri, kind)
    remote.require()
    cache = (cache_root(files) or Path.home() / ".cache" / "jsfree") / "models"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / remote.content_key()
    if not target.is_dir():
        with FileLock(f"{target}.lock"):
            if not target.is_dir():  # no other process has downloaded it meanwhile
                _copy(remote, target)
    return target


class RemoteFolder:
    """A model folder on a remote filesystem (fsspec). Files that do not belong to the model are ignored."""

    def __init__(self, uri: str, kind: Kind) -> None:
        self.uri, self.kind = uri, kind
        if uri.startswith(("http://", "https://")):
            raise ModelError(
                f"{kind.name} {uri!r}: files cannot be listed over HTTP", "use a hub id, a folder or s3://..."
            )
        try:
            self.filesystem, self.path = filesystem_of(uri.rstrip("/"))
            self.filesystem.invalidate_cache()  # it may have been published after this process last listed it
            entries = self.filesystem.ls(self.path, detail=True) if self.filesystem.isdir(self.path) else []
        except (ImportError, ValueError) as error:
            raise ModelError(f"{kind.name} {uri!r}: {error} (on every node)") from error
        except Exception as error:  # filesystems have their own exceptions
            raise ModelError(f"{kind.name} {uri!r} cannot be read: {reason(error)}") from error
        if not entries:
            raise ModelError(f"{kind.name} {uri!r}: the folder does not exist or is empty", "check the URI")
        self.names = [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]
        self.files: dict[str, Mapping[str, Any]] = {
            name: entry
            for entry in entries
            if entry["type"] == "file" and kind.takes(name := entry["name"].rsplit("/", 1)[-1])
        }

    def require(self) -> None:
        """Check that the model is complete.

        Raises:
            ModelError: a file is missing, or the model is of another type.
        """
        require(self.kind, self.uri, self.names, self.read)

    def read(self, name: str) -> bytes:
        """Read a file."""
        try:
            return bytes(self.filesystem.cat_file(f"{self.path}/{name}"))
        except Exception as error:  # filesystems have their own exceptions
            raise ModelError(f"{self.uri}/{name} cannot be read: {reason(error)}") from error

    def content_key(self) -> str:
        """Return a cache key that depends on the content of the folder."""
        if CHECKSUMS in self.files:
            return hashlib.sha256(self.read(CHECKSUMS)).hexdigest()[:32]
        versions = [
            (name, entry.get("size"), *(str(entry[key]) for key in VERSION_ATTRIBUTES if key in entry))
            for name, entry in sorted(self.files.items())
        ]
        return hashlib.sha256(repr((self.uri, versions)).encode()).hexdigest()[:32]

    def copy_to(self, folder: Path, *, weights: bool = True) -> None:
        """Download the files of the model, with or without its weights."""
        folder.mkdir(parents=True, exist_ok=True)
        names = [name for name in self.files if weights or not fnmatchcase(name, self.kind.weights)]
        try:
            self.filesystem.get([f"{self.path}/{name}" for name in names], [str(folder / name) for name in names])
        except Exception as error:  # filesystems have their own exceptions
            raise ModelError(
                f"{self.kind.name} {self.uri!r} cannot be downloaded to {folder}: {reason(error)}"
            ) from error


def _copy(remote: RemoteFolder, target: Path) -> None:
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    needed = sum(int(entry.get("size") or 0) for entry in remote.files.values())
    require_space(target.parent, needed, f"{remote.kind.name} {remote.uri!r}")
    log.info("downloading %s, %.1f GB", remote.uri, needed / 1e9)
    try:
        remote.copy_to(partial)
        verify_checksums(partial, remote.uri)
        require_folder(remote.kind, remote.uri, partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check that the disk of a folder has space for a model.

    Args:
        needed: size of the model in bytes.
        what: name of the model, for the error message.

    Raises:
        ModelError: the free space is too small.
    """
    free = free_bytes(str(folder))
    if needed and needed + SPARE_BYTES > free:
        raise ModelError(
            f"{what} needs {needed / 1e9:.1f} GB (and {SPARE_BYTES / 1e9:.0f} GB to spare), but the disk of {folder}"
            f" has {free / 1e9:.1f} GB free",
            "delete old models there, or set models.cache to a folder on a larger disk",
        )
