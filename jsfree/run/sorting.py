"""Sorts rows with bounded memory, using temporary files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jsfree.errors import StorageError
from jsfree.run.filesystems import reason

POSITION = "__position__"


class RowSorter:
    """Sorts rows that arrive in any order by their given positions 0, 1, ... (without gaps).

    Whenever ``bucket_bytes`` of rows have arrived, they are distributed over bucket files, each of which holds a range
    of positions. The buckets are then read one after another and sorted in memory. Peak memory is a few times
    ``bucket_bytes``; the temporary folder holds all rows, uncompressed.
    """

    def __init__(self, bucket_bytes: int) -> None:
        self._bucket_bytes = bucket_bytes
        self._waiting: list[pa.Table] = []
        self._bytes = 0
        self._bucket_rows = 0
        """Positions per bucket; 0 until rows are written to files."""
        self._last_bucket = -1
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, table: pa.Table, positions: NDArray[np.int64]) -> None:
        """Add rows with their positions.

        Raises:
            StorageError: the temporary folder is full.
        """
        self._waiting.append(table.append_column(POSITION, pa.array(positions)))
        self._bytes += table.nbytes
        if self._bytes >= self._bucket_bytes:
            self._distribute()

    def sorted(self) -> Iterator[pa.Table]:
        """Yield all rows in order, as tables of about ``bucket_bytes``; then remove the temporary files.

        Raises:
            StorageError: the temporary folder is full.
        """
        try:
            if self._folder is None:
                yield from [_sorted_rows(self._waiting)] if self._waiting else []
                return
            self._distribute()
            for bucket in range(self._last_bucket + 1):
                yield self._read(bucket)
        finally:
            self.close()

    def close(self) -> None:
        """Drop all rows and remove the temporary files."""
        self._waiting = []
        if self._folder is not None:
            self._folder.cleanup()

    def _distribute(self) -> None:
        """Append the waiting rows to the files of their buckets."""
        if not self._waiting:
            return
        rows = _sorted_rows(self._waiting, keep_positions=True)
        self._bucket_rows = self._bucket_rows or max(1, rows.num_rows * self._bucket_bytes // self._bytes)
        self._waiting, self._bytes = [], 0
        buckets = rows[POSITION].to_numpy() // self._bucket_rows
        numbers, starts = np.unique(buckets, return_index=True)
        with _temporary_files():
            for bucket, start, end in zip(numbers, starts, [*starts[1:], rows.num_rows], strict=True):
                self._append(int(bucket), rows.slice(int(start), int(end - start)))

    def _append(self, bucket: int, rows: pa.Table) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="jsfree-sort-")
        self._last_bucket = max(self._last_bucket, bucket)
        with open(self._path(bucket), "ab") as file, pa.ipc.new_stream(file, rows.schema) as stream:
            stream.write_table(rows)

    def _read(self, bucket: int) -> pa.Table:
        """Read, sort and remove the file of a bucket, which holds one Arrow stream per distribution."""
        path, parts = self._path(bucket), []
        with _temporary_files(), pa.OSFile(path) as file:
            while file.tell() < file.size():
                parts.append(pa.ipc.open_stream(file).read_all())
            os.remove(path)
        return _sorted_rows(parts)

    def _path(self, bucket: int) -> str:
        assert self._folder is not None
        return f"{self._folder.name}/{bucket}.arrows"


def _sorted_rows(tables: list[pa.Table], *, keep_positions: bool = False) -> pa.Table:
    """The rows of tables, sorted by position."""
    together = pa.concat_tables(tables)
    rows = together.take(pa.array(np.argsort(together[POSITION].to_numpy())))
    return rows if keep_positions else rows.drop_columns([POSITION])


@contextmanager
def _temporary_files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"temporary files for sorting in {tempfile.gettempdir()} cannot be used: {reason(error)}",
            "set TMPDIR to a folder on a disk with more space",
        ) from error
