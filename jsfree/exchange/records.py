"""Files of records: Parquet, JSON lines or a JSON list, alone or below a folder, on any filesystem.

Tables and lines are read a few at a time; a JSON list is in memory as text, its records one by one. A record that
cannot be read is a RowError in its place; a file that cannot be read as a whole is a SourceError.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jsfree.config import Imported
from jsfree.errors import RowError, SourceError
from jsfree.exchange.formats import FORMATS, Record, fitting
from jsfree.images.listing import address, explained, files_below, opened
from jsfree.texts import printable

SUFFIXES = (".parquet", ".jsonl", ".json")
BESIDE = ("dataset_info.json", "provenance.jsonl")
"""Files that an export writes next to its records."""
ROWS_AT_ONCE = 64
ROWS_JUDGED = 100
"""Records of a file of which one at least must have the format's keys."""
MAX_LINE_BYTES = 64_000_000
"""A longer line of JSON is no record: texts and paths are far shorter."""
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
    filesystem, inner = opened(settings.path, "'imported.path'")
    with explained(settings.path, Exception):
        folder = inner if filesystem.isdir(inner) else inner.rpartition("/")[0]
    return address(filesystem, folder.rstrip("/"))


def content_hash(settings: Imported) -> str:
    """A hash of the names and bytes of all files of records, in their order; reads every file once.

    Raises:
        SourceError: the path is missing or unreadable.
    """
    found = hashlib.sha256()
    for file in _files(settings):
        content = hashlib.sha256()
        with explained(file.shown, Exception), file.filesystem.open(file.path, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                content.update(block)
        found.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + content.digest())
    return found.hexdigest()


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
    with explained(file.shown, Exception):  # every filesystem has errors of its own
        rows = read(file, (*layout.keys, *layout.optional))
        yield from (Found(file, row, _record(value)) for row, value in enumerate(rows))


def _record(value: Any) -> Record | RowError:
    if isinstance(value, dict | RowError):
        return value
    return RowError("malformed", f"is {type(value).__name__}, expected keys and values")


# Parquet


def _table(file: File, columns: Iterable[str]) -> Iterator[Record | RowError]:
    with file.filesystem.open(file.path, "rb") as content:
        try:
            table = pq.ParquetFile(content)
        except pa.ArrowException as error:
            raise SourceError(f"{file.shown} is no Parquet file ({error}); copy it again, or remove it") from error
        names = table.schema_arrow.names
        wanted = [name for name in names if name in columns]
        twice = next((name for name in wanted if wanted.count(name) > 1), None)
        if twice is not None:
            raise SourceError(f"{file.shown} has two columns {twice!r}; rename or remove one of them")
        if not wanted:
            yield dict.fromkeys(names)  # its keys tell what it is instead
            return
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=wanted):
            yield from _batch(batch)


def _batch(batch: pa.RecordBatch) -> Iterator[Record | RowError]:
    """Rows of a table; one with a value that Python cannot have does not take the others with it."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        for row in range(batch.num_rows):
            try:
                yield from batch.slice(row, 1).to_pylist()
            except (ValueError, OverflowError, pa.ArrowException) as error:
                yield RowError("malformed", f"cannot be read ({error}); correct or remove the row")


# JSON


class _DuplicateKeyError(ValueError):
    """A JSON object says one key twice."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(f"the key {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct)


def _parsed(text: str) -> Any:
    """A JSON value, or what is wrong with the text."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return _no_record(error)


def _no_record(error: Exception) -> RowError:
    return RowError("malformed", f"is no valid JSON ({_why(error)}); correct or remove the row")


def _why(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _lines(file: File, _: Iterable[str]) -> Iterator[Any]:
    with file.filesystem.open(file.path, "rb") as content:
        first = True
        while line := content.readline(MAX_LINE_BYTES + 1):
            if first and (encoding := _other_encoding(line)):
                raise SourceError(f"{file.shown} is {encoding} text; save it as UTF-8")
            first = False
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = content.readline(MAX_LINE_BYTES)
                yield RowError("malformed", f"is a line of over {MAX_LINE_BYTES} bytes; correct or remove the row")
            elif text := line.decode("utf-8", "surrogateescape").lstrip("\ufeff").strip():
                yield _parsed(text)


def _other_encoding(start: bytes) -> str | None:
    """UTF-16 or UTF-32, by the mark or the zero bytes at the start of a file; None for UTF-8."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start[:2]:
        return "UTF-16"
    return None


def _list(file: File, _: Iterable[str]) -> Iterator[Any]:
    content = bytes(file.filesystem.cat_file(file.path))
    text = content.decode(json.detect_encoding(content), "surrogateescape")
    del content
    at = _SPACE.match(text, 0).end()  # type: ignore[union-attr]  # it matches nothing at least
    if text[at : at + 1] != "[":
        try:
            found = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            raise _no_list(file, _why(error)) from error
        raise SourceError(f"{file.shown}: expected a list of records, found {type(found).__name__}")
    yield from _elements(file, text, at + 1)


def _no_list(file: File, why: str) -> SourceError:
    return SourceError(f"{file.shown} is no valid JSON ({why}); has it a record a line, name it .jsonl")


_SPACE = re.compile(r"[ \t\n\r\ufeff]*")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)


def _elements(file: File, text: str, at: int) -> Iterator[Any]:
    """The elements of the list that is open at ``at``; one that is no value does not take the others with it."""

    def skip(position: int) -> int:
        return _SPACE.match(text, position).end()  # type: ignore[union-attr]  # it matches nothing at least

    at = skip(at)
    while text[at : at + 1] != "]":
        found: Any
        try:
            found, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            found, end = _no_record(error), _end_of_element(text, at)
        at = skip(end)
        if text[at : at + 1] not in ("]", ","):
            raise _no_list(file, f"neither ',' nor ']' at character {at}: it is cut off or damaged")
        yield found
        if text[at] == ",":
            at = skip(at + 1)
    if text[skip(at + 1) :]:
        raise _no_list(file, f"there is text after the list, at character {at + 1}")


def _end_of_element(text: str, at: int) -> int:
    """Where an element of a list ends, by its quotes and brackets alone; the text's end if it does not."""
    depth = 0
    for token in _TOKEN.finditer(text, at):
        mark = token[0]
        if depth == 0 and mark in (",", "]", "}"):
            return token.start()
        depth += (mark in ("[", "{")) - (mark in ("]", "}"))
    return len(text)


def _require_format(first: list[Found], settings: Imported) -> None:
    """See by its first records that a file is of the format it should be: one of them has its keys."""
    wanted = FORMATS[settings.format].keys
    found = [each for each in first if not isinstance(each.record, RowError)]
    if any(all(key in each.record for key in wanted) for each in found if not isinstance(each.record, RowError)):
        return
    odd = (found or first)[0]
    where = f"{odd.file.shown}, row {odd.row}"
    if isinstance(odd.record, RowError):
        raise SourceError(f"{where} {odd.record}; 'imported.path' must name files of {settings.format} records")
    keys = list(odd.record)
    missing = next(key for key in wanted if key not in keys)
    fits = fitting(keys)
    remedy = f"set 'imported.format' to {' or '.join(fits)}" if fits else "no format of jsfree has these keys"
    named = printable(", ".join(keys))
    raise SourceError(f"{where} has no key {missing!r}, so it is no {settings.format} record; it has {named}: {remedy}")
