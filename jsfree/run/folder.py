"""A folder on any filesystem that fsspec reaches, with atomic files and tables cut into shards.

The shards of a table are ``shard-00000.parquet``, ``shard-00001.parquet``, ... (more digits for larger numbers). The
name of a shard depends only on its number. A shard appears whole or not at all, and a finished one is never rewritten.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from jsfree.errors import JsfreeError, StorageError
from jsfree.run.filesystems import filesystem_of, reason

METADATA_KEY = b"jsfree"
READERS = 16
"""Number of files that are read from a store at the same time."""
PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}$")
"""Names of files that are being written on a local filesystem."""
SHARD = re.compile(r"shard-([0-9]{5,})\.parquet")


class Folder:
    """A folder of a filesystem.

    Every method raises StorageError, with the path and the reason, if the filesystem fails.
    """

    def __init__(self, uri: str) -> None:
        if not uri:
            raise StorageError("the path of a folder is empty", "name a folder or URI")
        stripped = uri.rstrip("/")
        uri = uri if stripped in ("", uri.split("://")[0] + ":") else stripped  # a root keeps its slashes
        try:
            self.filesystem, self.path = filesystem_of(uri)
        except (ImportError, ValueError) as error:
            raise StorageError(f"{uri}: {error}") from error
        self.uri = self.path if self.is_local else uri

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri}/{name}")

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local filesystem, so that other programs can open ``path``."""
        return isinstance(self.filesystem, LocalFileSystem)

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or the entry ``name`` in it, exists."""
        with _storage_errors(self.uri, "read"):
            self._invalidate_listings()
            return bool(self.filesystem.exists(self._path_of(name)))

    def is_file(self) -> bool:
        """Whether the path is a file instead of a folder."""
        with _storage_errors(self.uri, "read"):
            self._invalidate_listings()
            return bool(self.filesystem.isfile(self.path))

    def names(self) -> list[str]:
        """Names of the folder's entries, sorted; empty if the folder does not exist."""
        return sorted(self._entries())

    def folders(self) -> list[str]:
        """Names of the subfolders, sorted."""
        return sorted(name for name, entry in self._entries().items() if entry["type"] == "directory")

    def _entries(self) -> dict[str, dict[str, Any]]:
        with _storage_errors(self.uri, "read"):
            self._invalidate_listings()
            if not self.filesystem.isdir(self.path):
                return {}
            entries = {entry["name"].rstrip("/"): entry for entry in self.filesystem.ls(self.path, detail=True)}
            entries.pop(self.path.rstrip("/"), None)  # some stores list an object for the folder itself
            return {path.rsplit("/", 1)[-1]: entry for path, entry in entries.items()}

    def _invalidate_listings(self) -> None:
        """Drop the filesystem's cached listings, because other processes write to the same folders."""
        self.filesystem.invalidate_cache()

    def sizes(self) -> dict[str, int]:
        """Sizes in bytes of all files in the folder and below, by relative path, sorted; empty without a folder."""
        with _storage_errors(self.uri, "read"):
            self._invalidate_listings()
            if not self.filesystem.isdir(self.path):
                return {}
            files = self.filesystem.find(self.path, detail=True)
            start = len(self.path.rstrip("/")) + 1
            return {path[start:]: int(entry["size"]) for path, entry in sorted(files.items())}

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Open a file for reading; errors while it is open become StorageErrors."""
        with _storage_errors(f"{self.uri}/{name}", "read"), self.filesystem.open(self._path_of(name)) as file:
            yield file

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with _storage_errors(f"{self.uri}/{name}", "read"):
            return bytes(self.filesystem.cat_file(self._path_of(name)))

    def write(self, name: str, content: bytes) -> None:
        """Publish a file atomically: it appears whole or not at all."""
        if self.is_local:
            with self.create(name) as file:
                file.write(content)
            return
        with _storage_errors(f"{self.uri}/{name}", "written"):  # stores publish an object once its upload is complete
            self.filesystem.pipe_file(self._path_of(name), content)

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Write a file in parts; it is published when the block ends without an error."""
        uri = f"{self.uri}/{name}"
        if not self.is_local:
            with tempfile.NamedTemporaryFile() as spooled:
                with _storage_errors(spooled.name, "written", OSError):
                    yield cast(IO[bytes], spooled)
                    spooled.flush()
                with _storage_errors(uri, "written"):
                    self.filesystem.put_file(spooled.name, self._path_of(name))
            return
        target = self._path_of(name)
        partial = f"{os.path.dirname(target)}/.{os.path.basename(target)}.{uuid.uuid4().hex}"  # matches PARTIAL
        with _storage_errors(uri, "written", OSError):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            try:
                with open(partial, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, target)
            except BaseException:
                with suppress(OSError):
                    os.remove(partial)
                raise

    def read_json(self, name: str) -> Any:
        """The content of a JSON file."""
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise StorageError(
                f"{self.uri}/{name} is not valid JSON ({error})", "delete it; it will be written again"
            ) from error

    def write_json(self, name: str, value: Any) -> None:
        """Publish a JSON file."""
        self.write(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read_table(self, name: str, schema: pa.Schema) -> pa.Table:
        """The columns of ``schema`` of a Parquet file, which may have more columns."""
        content = self.read(name)
        try:
            return pq.read_table(pa.BufferReader(content), columns=schema.names).cast(schema)
        except (pa.ArrowException, ValueError) as error:
            raise wrong_columns(self, name, error) from error

    def write_table(
        self, name: str, table: pa.Table, metadata: dict[str, Any] | None = None, group_rows: int | None = None
    ) -> None:
        """Publish a table as Parquet.

        Args:
            metadata: stored with the table; ``table_metadata`` returns it.
            group_rows: rows of a row group.
        """
        sink = pa.BufferOutputStream()
        table = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata or {})})
        pq.write_table(table, sink, compression="zstd", row_group_size=group_rows)
        self.write(name, sink.getvalue().to_pybytes())

    def table_metadata(self, name: str) -> dict[str, Any]:
        """The metadata that ``write_table`` stored with a table."""
        with self.open(name) as file:
            metadata: dict[str, Any] = json.loads((pq.read_schema(file).metadata or {}).get(METADATA_KEY, b"{}"))
            return metadata

    def count_rows(self) -> int:
        """Number of rows in all finished shards; reads only their footers."""
        with ThreadPoolExecutor(READERS) as readers:
            return sum(readers.map(self._count_shard_rows, self.shards()))

    def _count_shard_rows(self, number: int) -> int:
        with self.open(shard_name(number)) as file:
            return int(pq.read_metadata(file).num_rows)

    def shards(self) -> list[int]:
        """Numbers of the finished shards, in order."""
        return sorted(int(match[1]) for match in map(SHARD.fullmatch, self.names()) if match)

    def read_shards(self, schema: pa.Schema) -> pa.Table:
        """All finished shards as one table."""
        tables = [self.read_table(shard_name(number), schema) for number in self.shards()]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def upload(self, local: str) -> None:
        """Copy the files of a local folder into this one."""
        with _storage_errors(self.uri, "written"):
            files = sorted(path for path in Path(local).rglob("*") if path.is_file())
            targets = [self._path_of(path.relative_to(local).as_posix()) for path in files]
            for folder in {self.path, *(os.path.dirname(target) for target in targets)}:
                self.filesystem.makedirs(folder, exist_ok=True)
            # Lists, because a single path with brackets would be treated as a pattern.
            self.filesystem.put([str(path) for path in files], targets)

    def copy_from(self, source: Folder, name: str) -> None:
        """Copy the file ``name`` of another folder on the same filesystem into this one."""
        with _storage_errors(f"{self.uri}/{name}", "written"):
            self.filesystem.cp_file(source._path_of(name), self._path_of(name))

    def link_from(self, source: Folder, name: str) -> None:
        """Publish the file ``name`` of another folder in this one, atomically and without copying it where possible.

        On one disk both names refer to one file (a hard link), and within a store the store copies it.
        """
        if self.is_local and source.is_local:
            with _storage_errors(f"{self.uri}/{name}", "written", OSError):
                _link(source._path_of(name), self._path_of(name))
        elif not self.is_local and type(self.filesystem) is type(source.filesystem):
            self.copy_from(source, name)
        else:
            with source.open(name) as content, self.create(name) as file:
                shutil.copyfileobj(content, file)

    def download(self, local: str) -> None:
        """Copy the content of this folder into a local one."""
        with _storage_errors(self.uri, "read"):
            names = list(self.sizes())
            for folder in {os.path.dirname(f"{local}/{name}") for name in names}:
                os.makedirs(folder, exist_ok=True)
            self.filesystem.get([self._path_of(name) for name in names], [f"{local}/{name}" for name in names])

    def remove(self, name: str = "") -> None:
        """Delete the folder, or its entry ``name``, with all content; do nothing if it does not exist."""
        with _storage_errors(self.uri, "removed"):
            self._invalidate_listings()
            path = self._path_of(name)
            if not self.filesystem.exists(path):
                return
            if self.is_local or not set(path) & set("*?["):
                self.filesystem.rm(path, recursive=True)
                return
            # Other filesystems treat such a path as a pattern, which could match other entries.
            for file in self.filesystem.find(path):
                self.filesystem.rm_file(file)

    def remove_partial_files(self) -> None:
        """Remove the partial files of killed writers; call it only while nothing is written to the folder."""
        for name in self.names() if self.is_local else []:
            if PARTIAL.match(name):
                self.remove(name)

    def _path_of(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path


def _link(source: str, target: str) -> None:
    """Replace ``target`` by a hard link to ``source``, or by a copy on a filesystem without hard links."""
    partial = f"{os.path.dirname(target)}/.{os.path.basename(target)}.{uuid.uuid4().hex}"  # matches PARTIAL
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
        os.replace(partial, target)
    finally:
        with suppress(FileNotFoundError):  # it still exists if both names were one file already
            os.remove(partial)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.parquet"


def wrong_columns(folder: Folder, name: str, error: Exception) -> StorageError:
    """The error for a table that does not have the columns its stage writes."""
    return StorageError(f"{folder.uri}/{name} does not have the columns of this stage ({error})", "restart the stage")


@contextmanager
def _storage_errors(path: str, verb: str, kind: type[Exception] = Exception) -> Iterator[None]:
    """Raise errors of the operating system or a store as a StorageError that names the path."""
    try:
        yield
    except JsfreeError:
        raise
    except kind as error:  # each store's client has its own error classes
        raise StorageError(f"{path} cannot be {verb}: {reason(error)}") from error
