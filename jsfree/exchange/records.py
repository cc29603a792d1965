"""Files of records: Parquet, JSON lines or a JSON list, alone or below a folder, on any filesystem.

Records are read a few at a time, so that memory does not depend on the size of a file. Whether JSON is a list or
lines is seen by its content. A record that cannot be read is a RowError in its place; a file that cannot be read as a
whole is a SourceError.
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
from jsfree.exchange.formats import FORMATS, Record, fitting
from jsfree.images.json_rows import json_rows
from jsfree.images.listing import absolute_uri, files_below, open_path, reported_as_source_error
from jsfree.images.tables import values
from jsfree.texts import printable

SUFFIXES = (".parquet", ".jsonl", ".json")
BESIDE = ("dataset_info.json", "provenance.jsonl")
"""Files that an export writes next to its records."""
ROWS_AT_ONCE = 64
ROWS_JUDGED = 100
"""Records of a file of which one at least must have the format's keys."""
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
        first = list(islice(found, ROWS_JUDGED))
        if first:
            _require_format(first, settings)
            yield from chain(first, found)


def configured_folder(settings: Imported) -> str:
    """The folder of ``settings.path``: itself, or that of the file; an absolute path or a URI.

    Raises:
        SourceError: the path is missing or unreadable.
    """
    filesystem, inner = open_path(settings.path, "'imported.path'")
    with reported_as_source_error(settings.path, Exception):
        folder = inner if filesystem.isdir(inner) else inner.rpartition("/")[0]
    return absolute_uri(filesystem, folder.rstrip("/") or "/")


def content_hash(settings: Imported) -> str:
    """A hash of the names and bytes of all files of records, in their order; reads every file once.

    Raises:
        SourceError: the path is missing or unreadable.
    """
    found = hashlib.sha256()
    for file in _files(settings):
        content = hashlib.sha256()
        with reported_as_source_error(file.shown, Exception), file.filesystem.open(file.path, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                content.update(block)
        found.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + content.digest())
    return found.hexdigest()


def _files(settings: Imported) -> list[File]:
    path = settings.path
    filesystem, inner = open_path(path, "'imported.path'")
    with reported_as_source_error(path):
        if filesystem.isdir(inner):
            below = sorted(name for name in files_below(filesystem, inner) if name.endswith(SUFFIXES))
            names = {name: f"{inner.rstrip('/')}/{name}" for name in below if name.rsplit("/", 1)[-1] not in BESIDE}
        else:
            names = {inner.rsplit("/", 1)[-1]: inner}
    unknown = next((name for name in names if not name.endswith(SUFFIXES)), None)
    if unknown or not names:
        what = f"is no {', '.join(SUFFIXES)} file" if unknown else f"holds no {', '.join(SUFFIXES)} files"
        raise SourceError(f"{path} {what}", "let 'imported.path' name the records, or a folder of them")
    return [File(name, absolute_uri(filesystem, each), filesystem, each) for name, each in names.items()]


def _read(file: File, settings: Imported) -> Iterator[Found]:
    layout = FORMATS[settings.format]
    read = _table if file.path.endswith(".parquet") else _json
    with reported_as_source_error(file.shown, Exception):  # every filesystem has errors of its own
        rows = read(file, (*layout.keys, *layout.optional))
        yield from (Found(file, row, _record(value)) for row, value in enumerate(rows))


def _record(value: Any) -> Record | RowError:
    if isinstance(value, dict | RowError):
        return value
    return RowError("malformed", f"is {type(value).__name__}, expected keys and values")


def _table(file: File, columns: Iterable[str]) -> Iterator[Record | RowError]:
    with file.filesystem.open(file.path, "rb") as content:
        try:
            table = pq.ParquetFile(content)
        except pa.ArrowException as error:
            raise SourceError(f"{file.shown} is no Parquet file ({error})", "copy it again, or remove it") from error
        names = table.schema_arrow.names
        wanted = [name for name in names if name in columns]
        twice = next((name for name in wanted if wanted.count(name) > 1), None)
        if twice is not None:
            raise SourceError(f"{file.shown} has two columns {twice!r}", "rename or remove one of them")
        if not wanted:
            yield dict.fromkeys(names)  # its keys tell what it is instead
            return
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=wanted):
            yield from values(batch)


def _json(file: File, _: Iterable[str]) -> Iterator[Any]:
    with file.filesystem.open(file.path, "rb") as content:
        is_lines = file.path.endswith(".jsonl")
        yield from json_rows(content, file.shown, distinct_keys=True, may_be_empty=is_lines)


def _require_format(first: list[Found], settings: Imported) -> None:
    """See by its first records that a file is of the format it should be: one of them has its keys."""
    wanted = FORMATS[settings.format].keys
    found = [each for each in first if not isinstance(each.record, RowError)]
    if any(all(key in each.record for key in wanted) for each in found if not isinstance(each.record, RowError)):
        return
    odd = (found or first)[0]
    where = f"{odd.file.shown}, row {odd.row}"
    if isinstance(odd.record, RowError):
        raise SourceError(f"{where} {odd.record}", f"'imported.path' must name files of {settings.format} records")
    keys = list(odd.record)
    missing = next(key for key in wanted if key not in keys)
    fits = fitting(keys)
    remedy = f"set 'imported.format' to {' or '.join(fits)}" if fits else "no format of jsfree has these keys"
    named = printable(", ".join(keys))
    raise SourceError(
        f"{where} has no key {missing!r}, so it is no {settings.format} record", f"it has {named}: {remedy}"
    )
