"""Reads files of records: Parquet, JSON lines or a JSON list, alone or below a folder, on any filesystem.

Records are read a few at a time, so that memory does not depend on the size of a file. JSON lists and lines are told
apart by their content. An unreadable record is returned as a RowError; an unreadable file raises a SourceError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jsfree.config import Imported
from jsfree.errors import RowError, SourceError
from jsfree.exchange.formats import FORMATS, Record, matching_formats
from jsfree.images.json_rows import json_rows
from jsfree.images.listing import absolute_uri, files_below, open_path, reported_as_source_error
from jsfree.images.tables import values
from jsfree.texts import printable

SUFFIXES = (".parquet", ".jsonl", ".json")
IGNORED = ("dataset_info.json", "provenance.jsonl")
"""Files that an export writes next to its records."""
ROWS_AT_ONCE = 64
CHECKED_ROWS = 100
"""Records at the start of a file, one of which must have the format's keys."""
BLOCK_BYTES = 1 << 20


class File(NamedTuple):
    """A file of records: its name below the configured path, its whole path or URI, and its path on a filesystem."""

    name: str
    address: str
    filesystem: Any
    path: str

    @property
    def shown(self) -> str:
        """The whole path or URI, for messages."""
        return printable(self.address)


class ReadRecord(NamedTuple):
    """A record of a file, or its error; rows are counted from 0."""

    file: File
    row: int
    record: Record | RowError


def records(settings: Imported) -> Iterator[ReadRecord]:
    """Yield all records, file by file.

    Raises:
        SourceError: the path is missing or unreadable, or a file is not of the format.
    """
    for file in _files(settings):
        read = _read(file, settings)
        first = list(islice(read, CHECKED_ROWS))
        if first:
            _check_format(first, settings)
            yield from chain(first, read)


def configured_folder(settings: Imported) -> str:
    """The folder of ``settings.path``, which may be a file, as an absolute path or a URI.

    Raises:
        SourceError: the path is missing or unreadable.
    """
    filesystem, inner = open_path(settings.path, "'imported.path'")
    with reported_as_source_error(settings.path, Exception):
        folder = inner if filesystem.isdir(inner) else inner.rpartition("/")[0]
    return absolute_uri(filesystem, folder.rstrip("/") or "/")


def content_hash(settings: Imported) -> str:
    """Hash the names and contents of all files of records, in order.

    Raises:
        SourceError: the path is missing or unreadable.
    """
    total = hashlib.sha256()
    for file in _files(settings):
        content = hashlib.sha256()
        with reported_as_source_error(file.shown, Exception), file.filesystem.open(file.path, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                content.update(block)
        total.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + content.digest())
    return total.hexdigest()


def _files(settings: Imported) -> list[File]:
    path = settings.path
    filesystem, inner = open_path(path, "'imported.path'")
    with reported_as_source_error(path):
        if filesystem.isdir(inner):
            below = sorted(name for name in files_below(filesystem, inner) if name.endswith(SUFFIXES))
            names = {name: f"{inner.rstrip('/')}/{name}" for name in below if name.rsplit("/", 1)[-1] not in IGNORED}
        else:
            names = {inner.rsplit("/", 1)[-1]: inner}
    unknown = next((name for name in names if not name.endswith(SUFFIXES)), None)
    if unknown or not names:
        what = f"is not a {', '.join(SUFFIXES)} file" if unknown else f"contains no {', '.join(SUFFIXES)} files"
        raise SourceError(f"{path} {what}", "set 'imported.path' to a file of records, or a folder of them")
    return [File(name, absolute_uri(filesystem, each), filesystem, each) for name, each in names.items()]


def _read(file: File, settings: Imported) -> Iterator[ReadRecord]:
    layout = FORMATS[settings.format]
    read = _table if file.path.endswith(".parquet") else _json
    with reported_as_source_error(file.shown, Exception):  # filesystems raise errors of their own
        rows = read(file, (*layout.keys, *layout.optional))
        yield from (ReadRecord(file, row, _record(value)) for row, value in enumerate(rows))


def _record(value: Any) -> Record | RowError:
    if isinstance(value, dict | RowError):
        return value
    return RowError("malformed", f"is {type(value).__name__}, expected keys and values")


def _table(file: File, columns: Iterable[str]) -> Iterator[Record | RowError]:
    with file.filesystem.open(file.path, "rb") as content:
        try:
            table = pq.ParquetFile(content)
        except pa.ArrowException as error:
            raise SourceError(f"{file.shown} is not a Parquet file ({error})", "copy it again, or remove it") from error
        names = table.schema_arrow.names
        used = [name for name in names if name in columns]
        duplicate = next((name for name in used if used.count(name) > 1), None)
        if duplicate is not None:
            raise SourceError(f"{file.shown} has two columns {duplicate!r}", "rename or remove one of them")
        if not used:
            yield dict.fromkeys(names)  # for the error message of _check_format
            return
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=used):
            yield from values(batch)


def _json(file: File, _: Iterable[str]) -> Iterator[Any]:
    with file.filesystem.open(file.path, "rb") as content:
        is_lines = file.path.endswith(".jsonl")
        yield from json_rows(content, file.shown, distinct_keys=True, may_be_empty=is_lines)


def _check_format(first: list[ReadRecord], settings: Imported) -> None:
    """Check that one of the first records of a file has the keys of the format."""
    required = FORMATS[settings.format].keys
    readable = [(each, each.record) for each in first if not isinstance(each.record, RowError)]
    if any(all(key in record for key in required) for _, record in readable):
        return
    if not readable:
        raise SourceError(
            f"{first[0].file.shown}, row {first[0].row} {first[0].record}",
            f"set 'imported.path' to files of {settings.format} records",
        )
    example, record = readable[0]
    keys = list(record)
    missing = next(key for key in required if key not in keys)
    formats = matching_formats(keys)
    remedy = f"set 'imported.format' to {' or '.join(formats)}" if formats else "convert it: no format has these keys"
    raise SourceError(
        f"{example.file.shown}, row {example.row} is not a {settings.format} record: it has no key {missing!r}, only"
        f" {printable(', '.join(keys))}",
        remedy,
    )
