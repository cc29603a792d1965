"""Reads single images from Parquet tables in bounded memory.

A row of a Parquet file cannot be read without the rows before it in its row group. Small row groups are therefore read
as a whole and cached, up to ``CACHE_BYTES`` per process. A large row group is read up to the requested row, and is not
cached.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from jsfree.images.ranges import Cell, file_at
from jsfree.images.tables import batches, column_bytes, image_column, parquet

CACHE_BYTES = 2**27
CACHED_FOOTERS = 16
LARGE_GROUP = 2**25
"""Size of an image column in bytes above which its row group is not read as a whole."""


class _File(NamedTuple):
    """A version of a Parquet file."""

    uri: str
    version: tuple[int, ...]


class _CellReader:
    """Thread-safe reader of cells with caches of footers and recent row groups."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._footers: OrderedDict[_File, pq.FileMetaData] = OrderedDict()
        self._groups: OrderedDict[tuple[_File, str, int], pa.ChunkedArray] = OrderedDict()

    def read(self, cell: Cell) -> bytes | None:
        """Read a cell, as ``read_cell``."""
        file = _File(cell.file, _version(cell.file))
        key = (file, cell.column, cell.row_group)
        if (group := self._cached(key)) is not None:
            return _content(group[cell.row])
        filesystem, path = file_at(cell.file)
        with filesystem.open(path, "rb") as content, parquet(content, cell.file, self._footer(file)) as table:
            self._cache_footer(file, table.metadata)
            leaf = image_column(table.schema_arrow, cell.column, cell.file).bytes
            if leaf is None:
                return None
            # One thread at a time: others often need the same group, and a page of a large one takes much memory.
            with self._reading:
                if column_bytes(table, cell.row_group, [leaf]) > LARGE_GROUP:
                    return _read_row(table, cell, leaf)
                if (group := self._cached(key)) is None:
                    group = pa.chunked_array([batch.column(0) for batch in batches(table, cell.row_group, [leaf])])
                    self._cache(key, group)
        return _content(group[cell.row])

    def _cached(self, key: tuple[_File, str, int]) -> pa.ChunkedArray | None:
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
            return self._groups.get(key)

    def _cache(self, key: tuple[_File, str, int], group: pa.ChunkedArray) -> None:
        with self._lock:
            self._groups[key] = group
            while len(self._groups) > 1 and sum(cached.nbytes for cached in self._groups.values()) > CACHE_BYTES:
                self._groups.popitem(last=False)

    def _footer(self, file: _File) -> pq.FileMetaData | None:
        with self._lock:
            return self._footers.get(file)

    def _cache_footer(self, file: _File, footer: pq.FileMetaData) -> None:
        with self._lock:
            self._footers[file] = footer
            self._footers.move_to_end(file)
            if len(self._footers) > CACHED_FOOTERS:
                self._footers.popitem(last=False)


_READER = _CellReader()


def read_cell(cell: Cell) -> bytes | None:
    """Read an image from a Parquet table; None for an empty cell.

    Raises:
        OSError: the file is missing or unreadable.
        SourceError: the file is not in Parquet format or does not have the column.
        IndexError: the file does not have the row.
    """
    return _READER.read(cell)


def _version(uri: str) -> tuple[int, ...]:
    """Identify the content of a local file; remote files are assumed not to change."""
    filesystem, path = file_at(uri)
    if not isinstance(filesystem, LocalFileSystem):
        return ()
    status = os.stat(path)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _read_row(table: pq.ParquetFile, cell: Cell, leaf: str) -> bytes | None:
    """Read a cell without keeping the rows before it in memory."""
    first = 0
    for batch in batches(table, cell.row_group, [leaf]):
        if cell.row < first + batch.num_rows:
            return _content(batch.column(0)[cell.row - first])
        first += batch.num_rows
    raise IndexError(f"row group {cell.row_group} has {first} rows, not row {cell.row}; was the file replaced?")


def _content(value: pa.Scalar) -> bytes | None:
    content = value.as_py()
    content = content.get("bytes") if isinstance(content, dict) else content
    return bytes(content) if content else None
