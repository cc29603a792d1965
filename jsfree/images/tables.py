"""Images in Parquet tables: bytes, structs of bytes and path (Hugging Face datasets, RLAIF-V), or paths.

Listing reads ids (and paths) only; image bytes are read for the chosen rows alone, a few rows at a time. A row
cannot be read without its row group, so these bytes travel in the run's own tables, and there is a limit to that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jsfree.config import Source
from jsfree.errors import SourceError
from jsfree.images.listing import Candidate, address, beside, explained, files_below, located, opened

ID_COLUMNS = ("id", "image_id")
ROWS_AT_ONCE = 64
# They are in the driver's memory at once, and again in the table of every stage.
MOST_EMBEDDED_BYTES = 4 * 10**9


def table_images(source: Source) -> Iterable[Candidate]:
    """The rows of a Parquet file, or of all below a folder.

    An id is taken from a column ``id`` or ``image_id``; else it is the path, or the file's name and row number.

    Raises:
        SourceError: there is no table or row, a file is no Parquet, or the image column is missing or of no use.
    """
    path = str(source.path)
    filesystem, inner = opened(path)
    with explained(path):
        if filesystem.isdir(inner):
            names = sorted(name for name in files_below(filesystem, inner) if name.endswith(".parquet"))
            files = {name: f"{inner.rstrip('/')}/{name}" for name in names}
        else:
            files = {inner.rsplit("/", 1)[-1]: inner}
    rows = [row for name, file in files.items() for row in _rows(source, address(filesystem, file), name)]
    if not rows:
        raise SourceError(f"{path} holds no Parquet rows; correct 'source.path'")
    return rows


def read_bytes(source: Source, candidates: Sequence[Candidate]) -> dict[str, bytes | str]:
    """By image id: the bytes of images that are in tables, or the URI where a table has only a path.

    Raises:
        SourceError: the chosen images hold more bytes than ``MOST_EMBEDDED_BYTES``; nothing was read then.
    """
    wanted: dict[str, dict[int, str]] = defaultdict(dict)
    for candidate in candidates:
        if candidate.table is not None:
            wanted[candidate.table][candidate.row] = candidate.id
    expected = sum(_expected_bytes(table, source.column, sorted(rows)) for table, rows in wanted.items())
    if expected > MOST_EMBEDDED_BYTES:
        raise SourceError(
            f"{source.path}: the {len(candidates)} chosen images hold about {expected / 1e9:.1f} GB inside Parquet;"
            f" up to {MOST_EMBEDDED_BYTES / 1e9:.1f} GB are carried in a run. Pack them as WebDataset (docs/data.md),"
            " put paths into the table, or lower 'source.count'"
        )
    found: dict[str, bytes | str] = {}
    for table, rows in wanted.items():
        with _parquet(table) as file:
            root = beside(source, table)
            for row, value in _chosen(file, source.column, sorted(rows)):
                if content := _content(value, root):
                    found[rows[row]] = content
    return found


def _rows(source: Source, uri: str, name: str) -> Iterator[Candidate]:
    with _parquet(uri) as file:
        schema = file.schema_arrow
        paths = _holds_paths(schema, source.column, uri)
        id_column = next((column for column in ID_COLUMNS if column in schema.names), None)
        columns = [column for column in (id_column, source.column if paths else None) if column]
        table = file.read(columns=columns)
        ids = table[id_column].to_pylist() if id_column else [None] * table.num_rows
        images = table[source.column].to_pylist() if paths else [None] * table.num_rows
    root = beside(source, uri)
    for row, (image_id, image) in enumerate(zip(ids, images, strict=True)):
        fallback = image if image else f"{name}:{row}"
        chosen = str(image_id) if image_id is not None else fallback
        yield Candidate(chosen, located(root, image)) if image else Candidate(chosen, None, uri, row)


def _holds_paths(schema: pa.Schema, column: str, uri: str) -> bool:
    """Whether the image column holds paths alone (and so can be read while listing)."""
    if column not in schema.names:
        raise SourceError(f"{uri} has no column {column!r}; set 'source.column' to one of {', '.join(schema.names)}")
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return True
    fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or fields & {"bytes", "path"}:
        return False
    raise SourceError(
        f"{uri}: column {column!r} is {kind}, expected bytes, a struct with 'bytes' or 'path', or paths;"
        f" set 'source.column' to one of {', '.join(schema.names)}"
    )


class _Group(NamedTuple):
    """A row group that holds chosen rows: the number of its first row, and the chosen ones (ascending)."""

    number: int
    start: int
    rows: Sequence[int]


def _groups(file: pq.ParquetFile, rows: Sequence[int]) -> Iterator[_Group]:
    """Row groups that hold any of ``rows`` (ascending)."""
    start = 0
    for number in range(file.num_row_groups):
        end = start + file.metadata.row_group(number).num_rows
        inside = rows[bisect_left(rows, start) : bisect_left(rows, end)]
        if inside:
            yield _Group(number, start, inside)
        start = end


def _chosen(file: pq.ParquetFile, column: str, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Values of ``column`` in ``rows`` (ascending); row groups without any are not read."""
    for group in _groups(file, rows):
        first = group.start
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group.number], columns=[column]):
            last = first + batch.num_rows
            for row in group.rows[bisect_left(group.rows, first) : bisect_left(group.rows, last)]:
                yield row, batch.column(0)[row - first].as_py()
            first = last


def _expected_bytes(table: str, column: str, rows: Sequence[int]) -> int:
    """About how many bytes ``rows`` (ascending) hold, by the sizes in the file's footer."""
    expected = 0.0
    with _parquet(table) as file:
        for group in _groups(file, rows):
            facts = file.metadata.row_group(group.number)
            chunks = (facts.column(number) for number in range(facts.num_columns))
            size = sum(chunk.total_uncompressed_size for chunk in chunks if _belongs(chunk.path_in_schema, column))
            expected += size * len(group.rows) / facts.num_rows
    return round(expected)


def _belongs(path: str, column: str) -> bool:
    return path == column or path.startswith(f"{column}.")


def _content(value: Any, root: str) -> bytes | str | None:
    if isinstance(value, dict):
        if value.get("bytes"):
            return bytes(value["bytes"])
        return located(root, value["path"]) if value.get("path") else None
    return bytes(value) if value else None


@contextmanager
def _parquet(uri: str) -> Iterator[pq.ParquetFile]:
    filesystem, path = opened(uri)
    with explained(uri), filesystem.open(path, "rb") as content:
        try:
            yield pq.ParquetFile(content)
        except pa.ArrowException as error:
            raise SourceError(f"{uri} is no Parquet file ({error}); remove it or correct 'source.path'") from error
