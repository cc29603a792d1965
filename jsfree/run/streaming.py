"""Reads the tables of a run a part at a time, and only the columns that are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from jsfree.run.folder import Folder, shard_name, wrong_columns

PART_ROWS = 1024
PART_BYTES = 16 * 2**20
"""Size that a part has in memory at most, unless a single row is larger; estimated from the file's own sizes."""


def scan(folder: Folder, schema: pa.Schema, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """All finished shards in their order, as tables of bounded size.

    Args:
        schema: the schema of the whole table.
        columns: what to read, all columns by default; ``low.text`` is the field ``text`` of the struct ``low``.

    Raises:
        StorageError: a shard cannot be read, or does not have the columns.
    """
    for number in folder.shards():
        yield from scan_shard(folder, number, schema, columns)


def scan_shard(
    folder: Folder, number: int, schema: pa.Schema, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """One shard, as ``scan`` reads it."""
    wanted, paths = projected(schema, columns)
    with folder.open(shard_name(number)) as file:
        parquet = pq.ParquetFile(file)
        for batch in parquet.iter_batches(_part_rows(parquet.metadata), columns=paths):
            yield _with_schema(pa.Table.from_batches([batch]), wanted, folder, number)


def read_group(folder: Folder, number: int, group: int, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """One row group of a shard, with some of its columns, as ``scan`` reads them."""
    wanted, paths = projected(schema, columns)
    with folder.open(shard_name(number)) as file:
        return _with_schema(pq.ParquetFile(file).read_row_group(group, columns=paths), wanted, folder, number)


def projected(schema: pa.Schema, columns: Sequence[str] | None) -> tuple[pa.Schema, list[str]]:
    """The schema of what is read when ``columns`` are asked for, and the columns in the order of the schema."""
    fields, paths = [], []
    for field in schema:
        if columns is None or field.name in columns:
            fields.append(field)
            paths.append(field.name)
        elif pa.types.is_struct(field.type):
            children = [child for child in field.type if f"{field.name}.{child.name}" in columns]
            fields += [pa.field(field.name, pa.struct(children))] if children else []
            paths += [f"{field.name}.{child.name}" for child in children]
    return pa.schema(fields), paths


def _with_schema(table: pa.Table, schema: pa.Schema, folder: Folder, number: int) -> pa.Table:
    try:
        return table.cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise wrong_columns(folder, shard_name(number), error) from error


def _part_rows(metadata: pq.FileMetaData) -> int:
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return int(max(1, min(PART_ROWS, PART_BYTES * metadata.num_rows // max(1, size))))
