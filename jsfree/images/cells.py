"""Reads images out of Parquet tables, one cell at a time, in bounded memory.

A row of Parquet cannot be read without the rows before it in its row group. Small row groups are therefore read as a
whole, and the last ones are kept for the rows that come next; a large one is read up to the row, and nothing of it is
kept. A process keeps at most ``KEPT_BYTES``.
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

KEPT_BYTES = 2**27
KEPT_FOOTERS = 16
LARGE_GROUP = 2**25
"""Bytes of an image column, from which on its row group is not read as a whole."""


class _File(NamedTuple):
    """A Parquet file; one that was replaced is another one."""

    uri: str
    version: tuple[int, ...]


class _Tables:
    """Reads cells, from any thread, and keeps footers and the row groups that were read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._footers: OrderedDict[_File, pq.FileMetaData] = OrderedDict()
        self._groups: OrderedDict[tuple[_File, str, int], pa.ChunkedArray] = OrderedDict()

    def cell(self, cell: Cell) -> bytes | None:
        """As ``read_cell``."""
        file = _File(cell.file, _version(cell.file))
        key = (file, cell.column, cell.row_group)
        if (kept := self._kept(key)) is not None:
            return _content(kept[cell.row])
        filesystem, path = file_at(cell.file)
        with filesystem.open(path, "rb") as content, parquet(content, cell.file, self._footer(file)) as table:
            self._keep_footer(file, table.metadata)
            leaf = image_column(table.schema_arrow, cell.column, cell.file).bytes
            if leaf is None:
                return None
            # One thread at a time: others often want the same group, and a page of a large one takes much memory.
            with self._reading:
                if column_bytes(table, cell.row_group, [leaf]) > LARGE_GROUP:
                    return _passing(table, cell, leaf)
                if (kept := self._kept(key)) is None:
                    kept = pa.chunked_array([batch.column(0) for batch in batches(table, cell.row_group, [leaf])])
                    self._keep(key, kept)
        return _content(kept[cell.row])

    def _kept(self, key: tuple[_File, str, int]) -> pa.ChunkedArray | None:
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
            return self._groups.get(key)

    def _keep(self, key: tuple[_File, str, int], group: pa.ChunkedArray) -> None:
        with self._lock:
            self._groups[key] = group
            while len(self._groups) > 1 and sum(each.nbytes for each in self._groups.values()) > KEPT_BYTES:
                self._groups.popitem(last=False)

    def _footer(self, file: _File) -> pq.FileMetaData | None:
        with self._lock:
            return self._footers.get(file)

    def _keep_footer(self, file: _File, footer: pq.FileMetaData) -> None:
        with self._lock:
            self._footers[file] = footer
            self._footers.move_to_end(file)
            if len(self._footers) > KEPT_FOOTERS:
                self._footers.popitem(last=False)


_TABLES = _Tables()


def read_cell(cell: Cell) -> bytes | None:
    """The bytes of an image in a Parquet table; None for an empty cell.

    Raises:
        OSError: the file is missing, or cannot be read.
        SourceError: it is no Parquet file, or has no such column.
        IndexError: it has no such row.
    """
    return _TABLES.cell(cell)


def _version(uri: str) -> tuple[int, ...]:
    """What tells a local file from one that took its place; the objects of a store are taken to stay as they are."""
    filesystem, path = file_at(uri)
    if not isinstance(filesystem, LocalFileSystem):
        return ()
    found = os.stat(path)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _passing(table: pq.ParquetFile, cell: Cell, leaf: str) -> bytes | None:
    """The cell, with nothing kept of the rows before it."""
    first = 0
    for batch in batches(table, cell.row_group, [leaf]):
        if cell.row < first + batch.num_rows:
            return _content(batch.column(0)[cell.row - first])
        first += batch.num_rows
    raise IndexError(f"row group {cell.row_group} has {first} rows, and no row {cell.row}; was the file replaced?")


def _content(value: pa.Scalar) -> bytes | None:
    found = value.as_py()
    found = found.get("bytes") if isinstance(found, dict) else found
    return bytes(found) if found else None
