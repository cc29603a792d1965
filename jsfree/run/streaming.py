"""Reads the tables of a run in parts of bounded size, with only the requested columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from jsfree.run.folder import Folder, shard_name, wrong_columns

PART_ROWS = 1024
PART_BYTES = 16 * 2**20
"""Maximum size of a part in memory, unless a single row is larger; estimated from the sizes stored in the file."""


def scan(folder: Folder, schema: pa.Schema, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield all finished shards in order, as tables of bounded size.

    Args:
        schema: the schema of the whole table.
        columns: the columns to read, by default all; ``low.text`` is the field ``text`` of the struct ``low``.

    Raises:
        StorageError: a shard cannot be read, or does not have the columns.
    """
    for number in folder.shards():
        yield from scan_shard(folder, number, schema, columns)


def scan_shard(
    folder: Folder, number: int, schema: pa.Schema, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield one shard as ``scan`` does."""
    projection = project(schema, columns)
    with folder.open(shard_name(number)) as file:
        parquet = pq.ParquetFile(file)
        for batch in parquet.iter_batches(_part_rows(parquet.metadata), columns=projection.paths):
            yield _cast(pa.Table.from_batches([batch]), projection, folder, number)


def read_group(folder: Folder, number: int, group: int, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Some columns of one row group of a shard; ``columns`` as in ``scan``."""
    projection = project(schema, columns)
    with folder.open(shard_name(number)) as file:
        table = pq.ParquetFile(file).read_row_group(group, columns=projection.paths)
        return _cast(table, projection, folder, number)


@dataclass(frozen=True)
class Projection:
    """A part of a schema, and the Parquet paths of its columns in order."""

    schema: pa.Schema
    paths: list[str]


def project(schema: pa.Schema, columns: Sequence[str] | None) -> Projection:
    """Select ``columns`` of a schema, as in ``scan``."""
    fields, paths = [], []
    for field in schema:
        if columns is None or field.name in columns:
            fields.append(field)
            paths.append(field.name)
        elif pa.types.is_struct(field.type):
            children = [child for child in field.type if f"{field.name}.{child.name}" in columns]
            fields += [pa.field(field.name, pa.struct(children))] if children else []
            paths += [f"{field.name}.{child.name}" for child in children]
    return Projection(pa.schema(fields), paths)


def _cast(table: pa.Table, projection: Projection, folder: Folder, number: int) -> pa.Table:
    try:
        return table.cast(projection.schema)
    except (pa.ArrowException, ValueError) as error:
        raise wrong_columns(folder, shard_name(number), error) from error


def _part_rows(metadata: pq.FileMetaData) -> int:
    """Number of rows of a part."""
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return int(max(1, min(PART_ROWS, PART_BYTES * metadata.num_rows // max(1, size))))
