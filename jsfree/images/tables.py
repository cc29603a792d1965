"""Lists the images in Parquet tables: bytes, structs of bytes and path (Hugging Face datasets, RLAIF-V), or paths.

Listing reads only ids and paths, a few rows at a time. The address of an embedded image consists of file, column, row
group and row (``ranges.Cell``); ``cells`` reads its bytes later.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jsfree.config import Source
from jsfree.errors import RowError, SourceError
from jsfree.images.confinement import confinement_of
from jsfree.images.listing import (
    Container,
    Entry,
    Unusable,
    absolute_uri,
    entry_of,
    files_below,
    id_of,
    images_root,
    open_path,
    reported_as_source_error,
)
from jsfree.images.ranges import uri_of
from jsfree.texts import readable

ID_COLUMNS = ("id", "image_id")
ROWS_AT_ONCE = 65_536
BYTES_AT_ONCE = 2**23
"""Approximate size of a batch, estimated from the file's footer."""
BUFFER = 2**20
"""Read buffer per column, in bytes."""
MAX_EMBEDDED_BYTES = 4 * 10**9
"""Maximum total size of the images embedded in the tables of imported pairs."""
_VALUE_ERRORS = (ValueError, OverflowError, pa.ArrowException)


def table_images(source: Source) -> Iterator[Entry | Unusable]:
    """List the rows of a Parquet file or of all Parquet files below a folder.

    The id is the value of the column ``id`` or ``image_id`` if there is one, otherwise the path, or the file name and
    row number of an embedded image.

    Raises:
        SourceError: there are no rows or no images, a file is not in Parquet format, or the image column is missing or
            has an unsupported type.
    """
    path = str(source.path)
    filesystem, inner = open_path(path)
    with reported_as_source_error(path):
        if filesystem.isdir(inner):
            names = sorted(name for name in files_below(filesystem, inner) if name.endswith(".parquet"))
            files = {name: f"{inner.rstrip('/')}/{name}" for name in names}
        else:
            files = {posixpath.basename(inner): inner}
    rows, empty, table = 0, 0, None
    for name, file in files.items():
        table = _Table(source, uri_of(absolute_uri(filesystem, file)), readable(name))
        with reported_as_source_error(path, Exception), filesystem.open(file, "rb") as content:
            yield from table.entries(content)
        rows, empty = rows + table.rows, empty + table.empty
    if table is None or not rows:
        raise SourceError(f"{path} has no Parquet rows", "correct 'source.path'")
    if empty == rows:
        others = f"one of {', '.join(table.alternatives)}" if table.alternatives else "a column of images"
        raise SourceError(
            f"{path}: column {source.column!r} is empty in all of its {rows} rows", f"set 'source.column' to {others}"
        )


class Column(NamedTuple):
    """The image column of a file: names of the leaf columns with bytes and with paths in the file's footer."""

    bytes: str | None
    path: str | None
    is_path: bool
    """Whether the column contains only paths, which are then used as ids."""


class _Read(NamedTuple):
    """Consecutive rows of a row group.

    Attributes:
        first: number of the first row in the row group.
        ids: value of the id column of each row.
        images: the path of each image, None if it is embedded or missing, or the error of its cell.
        has_bytes: whether cells can contain embedded images.
    """

    first: int
    ids: Sequence[Any]
    images: Sequence[str | RowError | None]
    has_bytes: bool


class _Table:
    """A Parquet file; ``rows`` counts the listed rows, ``empty`` those of them without an image."""

    def __init__(self, source: Source, uri: str, name: str) -> None:
        self._source = source
        self._uri = uri
        self._name = name
        self._root = images_root(source, uri)
        self._confinement = confinement_of(source)
        self._container = Container(uri)
        self.rows = 0
        self.empty = 0
        self.alternatives: list[str] = []

    def entries(self, content: Any) -> Iterator[Entry | Unusable]:
        """List the images of all rows, in order."""
        with parquet(content, self._uri) as file:
            schema = file.schema_arrow
            column = image_column(schema, self._source.column, self._uri)
            ids = next((name for name in ID_COLUMNS if _has_column(schema, name, self._uri)), None)
            self.alternatives = [
                field.name for field in schema if field.name not in (ids, self._source.column) and _leaves(field)
            ]
            for group in range(file.num_row_groups):
                tail = f"#column={quote(self._source.column, safe='')}&row_group={group}&row="
                for read in _rows(file, group, self._source.column, column, ids):
                    yield from self._entries(read, tail, paths_are_ids=column.is_path)

    def _entries(self, read: _Read, tail: str, *, paths_are_ids: bool) -> Iterator[Entry | Unusable]:
        for row, (key, image) in enumerate(zip(read.ids, read.images, strict=True), read.first):
            number = f"{self._name}:{self.rows}"
            try:
                image_id = id_of(_require_usable(key))
                if path := _require_usable(image):
                    image_id = image_id or (None if paths_are_ids else number)
                    yield entry_of(path, self._root, self._confinement, image_id)
                else:
                    self.empty += not read.has_bytes
                    yield Entry(image_id or number, self._container, f"{tail}{row}")
            except RowError as error:
                where = f"{self._uri}, row {self.rows}"
                yield Unusable(number, RowError(error.kind, f"{where}: {error}"))
            self.rows += 1


def _require_usable(value: Any) -> Any:
    if isinstance(value, RowError):
        raise value
    return value


def image_column(schema: pa.Schema, name: str, uri: str) -> Column:
    """Find the leaves of the image column.

    Raises:
        SourceError: there is no column of this name, or more than one, or it cannot contain images.
    """
    names = ", ".join(dict.fromkeys(other for other in schema.names if other != name)) or "(no other column)"
    if not _has_column(schema, name, uri):
        raise SourceError(f"{uri} has no column {name!r}", f"set 'source.column' to one of {names}")
    field = schema.field(name)
    if (column := _leaves(field)) is None:
        raise SourceError(
            f"{uri}: column {name!r} is {field.type}, expected bytes, a struct with 'bytes' or 'path', or paths",
            f"set 'source.column' to one of {names}",
        )
    return column


def _has_column(schema: pa.Schema, name: str, uri: str) -> bool:
    if (count := schema.names.count(name)) > 1:
        raise SourceError(f"{uri} has {count} columns {name!r}", "rename or drop all but one of them")
    return bool(count)


def _leaves(field: pa.Field) -> Column | None:
    """Find the leaves of a column; None if it cannot contain images."""
    kind = _storage(field.type)
    if _is_text(kind):
        return Column(None, field.name, is_path=True)
    if _is_bytes(kind):
        return Column(field.name, None, is_path=False)
    if pa.types.is_null(kind):
        return Column(None, None, is_path=False)
    fields = {each.name: _storage(each.type) for each in kind} if pa.types.is_struct(kind) else {}
    content, path = fields.get("bytes"), fields.get("path")
    if not (_is_bytes(content) or _is_text(path) or pa.types.is_null(content or path or kind)):
        return None
    return Column(
        f"{field.name}.bytes" if _is_bytes(content) else None,
        f"{field.name}.path" if _is_text(path) else None,
        is_path=False,
    )


def _storage(kind: pa.DataType) -> pa.DataType:
    while pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind.storage_type
    return kind


def _is_text(kind: pa.DataType | None) -> bool:
    return kind is not None and any(
        is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _is_bytes(kind: pa.DataType | None) -> bool:
    types = pa.types
    kinds = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return kind is not None and any(is_kind(kind) for is_kind in kinds)


def _rows(file: pq.ParquetFile, group: int, name: str, column: Column, ids: str | None) -> Iterator[_Read]:
    """Read ids and paths of a row group; embedded images are not read unless paths and bytes are mixed."""
    facts = file.metadata.row_group(group)
    nulls = facts.num_rows if column.bytes is None else _nulls(facts, column.bytes)
    has_bytes = nulls != facts.num_rows
    wanted = None if column.path is None or nulls == 0 else name if has_bytes else column.path
    columns = [each for each in (ids, wanted) if each is not None]
    first = 0
    for batch in batches(file, group, columns):
        keys: Sequence[Any] = values(batch.column(ids)) if ids is not None else [None] * batch.num_rows
        images = _paths(batch.column(name), column) if wanted is not None else [None] * batch.num_rows
        yield _Read(first, keys, images, has_bytes)
        first += batch.num_rows
    for first in range(0, 0 if columns else facts.num_rows, ROWS_AT_ONCE):
        nulls_only = [None] * min(ROWS_AT_ONCE, facts.num_rows - first)
        yield _Read(first, nulls_only, nulls_only, has_bytes)


def _nulls(facts: pq.RowGroupMetaData, leaf: str) -> int | None:
    """How many cells of a row group have no bytes, by its statistics; None if they do not say.

    They say nothing of a cell of no bytes among many of very long ones; it is taken for an image, and is missing.
    """
    chunks = (facts.column(number) for number in range(facts.num_columns))
    found = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == leaf), None)
    if found is None or not found.has_null_count or (found.has_min_max and not found.min):
        return None
    return int(found.null_count)


def _paths(array: pa.Array, column: Column) -> list[Any]:
    """Return the path of each cell, or None for cells with bytes."""
    if column.is_path:
        return values(array)
    names = {field.name for field in array.type}
    paths = values(pc.struct_field(array, "path"))
    if "bytes" not in names:
        return paths
    content = plain(pc.struct_field(array, "bytes"))
    filled = pc.fill_null(pc.greater(pc.binary_length(content), 0), False).to_pylist()
    return [None if full else path for path, full in zip(paths, filled, strict=True)]


def batches(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Iterate over columns of a row group in batches of about ``BYTES_AT_ONCE`` bytes."""
    rows = max(1, file.metadata.row_group(group).num_rows)
    size = max(1, column_bytes(file, group, columns) // rows)
    at_once = max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // size))
    if columns:
        yield from file.iter_batches(at_once, row_groups=[group], columns=list(columns), use_threads=False)


def column_bytes(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> int:
    """Uncompressed size of columns in a row group, from the file's footer."""
    facts = file.metadata.row_group(group)
    chunks = (facts.column(number) for number in range(facts.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if any(chunk.path_in_schema == each or chunk.path_in_schema.startswith(f"{each}.") for each in columns)
    )


def plain(array: pa.Array) -> pa.Array:
    """Convert dictionary, view and extension arrays to their plain types."""
    while pa.types.is_dictionary(array.type) or isinstance(array.type, pa.BaseExtensionType):
        array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array.storage
    if pa.types.is_string_view(array.type):
        return array.cast(pa.large_string())
    return array.cast(pa.large_binary()) if pa.types.is_binary_view(array.type) else array


def values(rows: pa.Array | pa.RecordBatch) -> list[Any]:
    """Convert an array, or the rows of a batch, to Python values.

    A value that cannot be converted (a string that is not UTF-8, a date outside Python's range) becomes a RowError.
    """
    try:
        converted: list[Any] = rows.to_pylist()
        return converted
    except _VALUE_ERRORS:
        return [_value(rows.slice(number, 1)) for number in range(len(rows))]


def _value(row: pa.Array | pa.RecordBatch) -> Any:
    try:
        return row.to_pylist()[0]
    except _VALUE_ERRORS as error:
        shown = f" of {error.object!r:.80}" if isinstance(error, UnicodeDecodeError) else ""
        return RowError("malformed", f"cannot be read ({error}{shown})", "correct or remove the row")


@contextmanager
def parquet(content: Any, uri: str, footer: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file for reading in small parts.

    Args:
        content: the open file.
        uri: its name, for error messages.
        footer: metadata of the file, if already known.

    Raises:
        SourceError: the file is not in Parquet format, or is damaged.
    """
    try:
        yield pq.ParquetFile(content, metadata=footer, buffer_size=BUFFER, pre_buffer=False)
    except pa.ArrowException as error:
        raise SourceError(f"{uri} is not a Parquet file ({error})", "remove it or correct 'source.path'") from error
