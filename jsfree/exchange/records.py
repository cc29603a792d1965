"""Files of records: Parquet, JSON lines or a JSON list, alone or below a folder, on any filesystem.

Tables and lines are read a few at a time; a JSON list is read whole, because that is how JSON is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jsfree.config import Imported
from jsfree.errors import RowError, SourceError
from jsfree.exchange.formats import FORMATS, Record, fitting
from jsfree.images.listing import address, explained, files_below, opened

SUFFIXES = (".parquet", ".jsonl", ".json")
BESIDE = ("dataset_info.json", "provenance.jsonl")
"""Files that an export writes beside its records."""
ROWS_AT_ONCE = 64


class File(NamedTuple):
    """A file of records: its name below what was asked for, its path for messages and for what lies beside it."""

    name: str
    address: str
    filesystem: Any
    path: str


class Found(NamedTuple):
    """A record, or what is wrong with it; rows are counted from 0."""

    file: File
    row: int
    record: Record | RowError


def records(settings: Imported) -> Iterator[Found]:
    """All records, file by file.

    Raises:
        SourceError: the path is missing or unreadable, or a file is no file of records of this format.
    """
    for file in _files(settings):
        found = _read(file, settings)
        first = next(found, None)
        if first is not None:
            _require_format(first, settings)
            yield from chain([first], found)


def _files(settings: Imported) -> list[File]:
    path = settings.path
    filesystem, inner = opened(path, "'imported.path'")
    with explained(path):
        if filesystem.isdir(inner):
            below = sorted(name for name in files_below(filesystem, inner) if name.endswith(SUFFIXES))
            names = {name: f"{inner.rstrip('/')}/{name}" for name in below if name.rsplit("/", 1)[-1] not in BESIDE}
        else:
            names = {inner.rsplit("/", 1)[-1]: inner}
    unknown = next((name for name in names if not name.endswith(SUFFIXES)), None)
    if unknown or not names:
        what = f"is no {', '.join(SUFFIXES)} file" if unknown else f"holds no {', '.join(SUFFIXES)} files"
        raise SourceError(f"{path} {what}; let 'imported.path' name the records, or a folder of them")
    return [File(name, address(filesystem, each), filesystem, each) for name, each in names.items()]


def _read(file: File, settings: Imported) -> Iterator[Found]:
    layout = FORMATS[settings.format]
    read = {"parquet": _table, "jsonl": _lines, "json": _list}[file.path.rsplit(".", 1)[-1]]
    with explained(file.address, Exception):  # every filesystem has errors of its own
        rows = read(file, (*layout.keys, *layout.optional))
        yield from (Found(file, row, _record(value)) for row, value in enumerate(rows))


def _record(value: Any) -> Record | RowError:
    if isinstance(value, dict | RowError):
        return value
    return RowError("malformed", f"is {type(value).__name__}, expected keys and values")


def _table(file: File, columns: Iterable[str]) -> Iterator[Record]:
    with file.filesystem.open(file.path, "rb") as content:
        try:
            table = pq.ParquetFile(content)
        except pa.ArrowException as error:
            raise SourceError(f"{file.address} is no Parquet file ({error}); copy it again, or remove it") from error
        wanted = [name for name in table.schema_arrow.names if name in columns]
        if not wanted:
            yield dict.fromkeys(table.schema_arrow.names)  # what it is instead is found out by its keys
            return
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=wanted):
            yield from batch.to_pylist()


def _lines(file: File, _: Iterable[str]) -> Iterator[Any]:
    with file.filesystem.open(file.path, "rb") as content:
        for line in content:
            if line.strip():
                yield _parsed(line)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return RowError("malformed", f"is no valid JSON ({error}); correct or remove the line")


def _list(file: File, _: Iterable[str]) -> Iterator[Any]:
    try:
        rows = json.loads(file.filesystem.cat_file(file.path))
    except ValueError as error:
        raise SourceError(
            f"{file.address} is no valid JSON ({error}); has it a record a line, name it .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise SourceError(f"{file.address}: expected a list of records, found {type(rows).__name__}")
    yield from rows


def _require_format(first: Found, settings: Imported) -> None:
    """See by its first record that a file is of the format it should be."""
    where = f"{first.file.address}, row {first.row}"
    if isinstance(first.record, RowError):
        raise SourceError(f"{where} {first.record}; 'imported.path' must name files of {settings.format} records")
    keys = list(first.record)
    missing = [key for key in FORMATS[settings.format].keys if key not in keys]
    if missing:
        fits = fitting(keys)
        remedy = f"set 'imported.format' to {' or '.join(fits)}" if fits else "no format of jsfree has these keys"
        raise SourceError(
            f"{where} has no key {missing[0]!r}, so it is no {settings.format} record;"
            f" it has {', '.join(keys)}: {remedy}"
        )
