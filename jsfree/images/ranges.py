"""Addresses of images that are not the whole of a file with a printable name.

    /data/a.tar#offset=1536&length=20480                a part of a file (``Part``)
    /data/a.parquet#column=image&row_group=3&row=17     a cell of a Parquet table (``Cell``)
    /data/caf%E9.png#escaped                            a file whose name is not UTF-8 (``Escaped``)

What precedes the last ``#`` is a path or any fsspec URI. Such an address is a string like every other ``uri`` of an
image, so that tables and stages handle all of them alike; only the reader of images tells them apart.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes

from jsfree.run.filesystems import filesystem_of
from jsfree.texts import is_text

_PART = re.compile(r"(.+)#offset=(\d{1,18})&length=(\d{1,18})", re.DOTALL)
_CELL = re.compile(r"(.+)#column=([^#&]*)&row_group=(\d{1,9})&row=(\d{1,18})", re.DOTALL)
_ESCAPED = re.compile(r"([!-~]+)#escaped")


class Part(NamedTuple):
    """``length`` bytes of ``file``, from ``offset`` on."""

    file: str
    offset: int
    length: int

    @property
    def uri(self) -> str:
        """The address of this part."""
        return f"{self.file}#offset={self.offset}&length={self.length}"


class Cell(NamedTuple):
    """The value of ``column`` in row ``row`` of row group ``row_group`` of a Parquet file; both count from 0."""

    file: str
    column: str
    row_group: int
    row: int

    @property
    def uri(self) -> str:
        """The address of this cell."""
        return f"{self.file}#column={quote(self.column, safe='')}&row_group={self.row_group}&row={self.row}"


class Escaped(NamedTuple):
    """A whole file whose name is not UTF-8, or reads like one of these addresses."""

    file: str

    @property
    def uri(self) -> str:
        """The address of this file, all in ASCII."""
        return f"{quote(os.fsencode(self.file), safe='/:')}#escaped"


def part_at(uri: str) -> Part | Cell | Escaped | None:
    """What ``uri`` names, unless it is simply the address of a file (None)."""
    if "#" not in uri:
        return None
    if uri.endswith("#escaped") and (match := _ESCAPED.fullmatch(uri)):
        return Escaped(os.fsdecode(unquote_to_bytes(match[1])))
    if match := _PART.fullmatch(uri):
        return Part(match[1], int(match[2]), int(match[3]))
    if match := _CELL.fullmatch(uri):
        return Cell(match[1], unquote(match[2]), int(match[3]), int(match[4]))
    return None


def uri_of(path: str) -> str:
    """An address for ``path`` that tables can hold and that names this file and nothing else."""
    return path if is_text(path) and part_at(path) is None else Escaped(path).uri


def file_at(uri: str) -> tuple[Any, str]:
    """The filesystem of a whole file, and the path on it; raises as ``filesystem_of``."""
    named = part_at(uri)
    return filesystem_of(named.file if isinstance(named, Escaped) else uri)


def file_of(uri: str) -> str:
    """The path or URI of the file that is opened for an address."""
    named = part_at(uri)
    if isinstance(named, Part | Cell):
        uri, named = named.file, part_at(named.file)
    return named.file if isinstance(named, Escaped) else uri
