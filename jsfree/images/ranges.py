"""Addresses of images inside larger files, and of files whose names are not valid UTF-8.

    /data/a.tar#offset=1536&length=20480                a byte range of a file (``Part``)
    /data/a.parquet#column=image&row_group=3&row=17     a cell of a Parquet table (``Cell``)
    /data/caf%E9.png#escaped                            a file whose name is not UTF-8 (``Escaped``)

The part before the last ``#`` is a local path or an fsspec URI. These strings are used as the ``uri`` of an image; only
the functions that open an image parse them.
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
    """``length`` bytes of ``file``, starting at ``offset``."""

    file: str
    offset: int
    length: int

    @property
    def uri(self) -> str:
        """The address of the byte range."""
        return f"{self.file}#offset={self.offset}&length={self.length}"


class Cell(NamedTuple):
    """A cell of a Parquet file; row groups, and rows in a row group, are counted from 0."""

    file: str
    column: str
    row_group: int
    row: int

    @property
    def uri(self) -> str:
        """The address of the cell."""
        return f"{self.file}#column={quote(self.column, safe='')}&row_group={self.row_group}&row={self.row}"


class Escaped(NamedTuple):
    """A file whose name is not UTF-8 or has the syntax of one of these addresses."""

    file: str

    @property
    def uri(self) -> str:
        """The address of the file, in ASCII."""
        return f"{quote(os.fsencode(self.file), safe='/:')}#escaped"


def parse_address(uri: str) -> Part | Cell | Escaped | None:
    """Parse an address; None for an ordinary path or URI of a file."""
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
    """Return an unambiguous address of the file ``path`` that is valid UTF-8."""
    return path if is_text(path) and parse_address(path) is None else Escaped(path).uri


def file_at(uri: str) -> tuple[Any, str]:
    """Return the filesystem of a file and the path on it; raises as ``filesystem_of``."""
    address = parse_address(uri)
    return filesystem_of(address.file if isinstance(address, Escaped) else uri)


def file_of(uri: str) -> str:
    """Return the path or URI of the file that contains the image at an address."""
    address = parse_address(uri)
    if isinstance(address, Part | Cell):
        uri, address = address.file, parse_address(address.file)
    return address.file if isinstance(address, Escaped) else uri
