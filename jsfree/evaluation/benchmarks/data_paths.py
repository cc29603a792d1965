"""Files of benchmarks on a local disk or in an object store: the part of ``pathlib.Path`` that the suites use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from jsfree.run.folder import Folder
from jsfree.uris import is_remote, local_path


class DataPath(Protocol):
    """A file or folder; ``str`` of it is a path or URI that workers can open. ``pathlib.Path`` is one."""

    @property
    def name(self) -> str:
        """The last part of the path."""

    def __truediv__(self, name: str, /) -> DataPath:
        """An entry of this folder."""

    def exists(self) -> bool:
        """Whether there is such a file or folder."""

    def is_dir(self) -> bool:
        """Whether it is a folder."""

    def iterdir(self) -> Iterator[DataPath]:
        """The entries of this folder."""

    def read_bytes(self) -> bytes:
        """The content of this file."""

    def read_text(self, encoding: str | None = None) -> str:
        """The content of this file as text."""


class RemotePath:
    """A file or folder in a store that fsspec reaches.

    Every method raises StorageError, with the path and the reason, if the store fails.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")

    def __str__(self) -> str:
        return self._uri

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._uri.rpartition("/")[2]

    def __truediv__(self, name: str, /) -> RemotePath:
        return self if name == "." else RemotePath(f"{self._uri}/{name}")

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return Folder(self._uri).exists()

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        folder = Folder(self._uri)
        return folder.exists() and not folder.is_file()

    def iterdir(self) -> Iterator[RemotePath]:
        """The entries of this folder, by name."""
        return (self / name for name in Folder(self._uri).names())

    def read_bytes(self) -> bytes:
        """The content of this file."""
        folder, _, name = self._uri.rpartition("/")
        return Folder(folder).read(name)

    def read_text(self, encoding: str | None = None) -> str:
        """The content of this file as text, by default UTF-8."""
        return self.read_bytes().decode(encoding or "utf-8")


def data_path(uri: str) -> DataPath:
    """The absolute path of a local path, or a URI such as ``s3://bucket/folder``."""
    return RemotePath(uri) if is_remote(uri) else Path(local_path(uri)).expanduser().absolute()
