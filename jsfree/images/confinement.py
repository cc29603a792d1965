"""Restricts the image paths in data files to a configured folder.

A JSON or Parquet file from an untrusted author can refer to ``../../home/x.png``, ``/etc/x.png`` or another host.
Unless ``allow_outside`` is set, rows of ``source`` and ``imported`` may only refer to images in the folder ``images``,
or in the folder of ``path`` if ``images`` is not set. Paths are checked when rows are listed. Symbolic links are
checked each time an image of a source is read, because links can change and the driver may not see them; those of
imported records are checked during import.
"""

from __future__ import annotations

import os
import posixpath
from typing import NamedTuple
from urllib.parse import unquote

import fsspec
from fsspec.core import split_protocol

from jsfree.config import Source
from jsfree.errors import RowError
from jsfree.images.ranges import Cell, Part, file_of, parse_address
from jsfree.run.filesystems import filesystem_of, is_chain
from jsfree.uris import has_scheme, is_remote, local_path

KINDS = ("llava_json", "parquet")
"""Kinds of sources whose data contain paths."""


class Confinement(NamedTuple):
    """The folder in which the images of a data file must be.

    Attributes:
        folder: an absolute path or a URI.
        allow_outside: allow images anywhere.
        section: section of the configuration with ``images`` and ``allow_outside``, for error messages.
    """

    folder: str
    allow_outside: bool
    section: str


def confinement_of(source: Source) -> Confinement:
    """Return the confinement of the images of ``source``."""
    return Confinement(confining_folder(source), source.allow_outside, "source")


def check_spelling(uri: str, confinement: Confinement, name: str) -> None:
    """Check that ``uri`` is in the folder, without access to the filesystem.

    Args:
        uri: an absolute path or a URI.
        confinement: the folder.
        name: the image path in the row, for the error message.

    Raises:
        RowError: ``uri`` is outside the folder (``outside``).
    """
    if not confinement.allow_outside and not is_inside(uri, confinement.folder):
        raise _outside(name, confinement)


def check_links(uri: str, confinement: Confinement, name: str) -> None:
    """Check that an image is in the folder after local symbolic links are resolved; arguments as ``check_spelling``.

    For an image inside a larger file (``ranges``), the file is checked.

    Raises:
        RowError: a link leads out of the folder (``outside``).
    """
    if confinement.allow_outside:
        return
    file, folder = file_of(uri), confinement.folder
    if file != uri:
        check_spelling(file, confinement, name)
    if not is_remote(folder) and not _is_below(_real(file), _real(folder)):
        raise _outside(name, confinement)


def check_source_links(uri: str | None, source: Source) -> None:
    """Apply ``check_links`` to an image of ``source`` before it is read.

    Raises:
        RowError: as ``check_links``.
    """
    if uri is None or source.allow_outside or source.kind not in KINDS or source.path is None:
        return
    part = parse_address(uri)
    if isinstance(part, Part | Cell):
        return  # inside a file of the source itself
    confinement = confinement_of(source)
    if is_inside(uri if part is None else part.file, confinement.folder):  # otherwise it is an image of another source
        check_links(uri, confinement, uri)


def confining_folder(source: Source) -> str:
    """Return the folder in which the images of ``source`` must be, as an absolute path or a URI."""
    if source.images:
        return absolute(source.images)
    path = str(source.path)
    if is_remote(path):
        is_folder = source.kind == "parquet" and not path.endswith(".parquet")
        return path.rstrip("/") if is_folder else posixpath.dirname(path)
    path = filesystem_of(path)[1]
    return path if source.kind == "parquet" and os.path.isdir(path) else posixpath.dirname(path)


def absolute(folder: str) -> str:
    """Convert a folder to an absolute path, which is valid in any working directory; URIs stay unchanged."""
    return folder.rstrip("/") if has_scheme(folder) else os.path.abspath(filesystem_of(folder)[1])


def is_inside(uri: str, folder: str) -> bool:
    """Whether an absolute path or URI is in ``folder``, without access to the filesystem."""
    if is_remote(folder):
        return has_scheme(uri) and _is_remote_inside(uri, folder)
    if uri.startswith(f"{folder}/") and ".." not in uri:
        return True
    if is_remote(uri):
        return False
    path, local = posixpath.normpath(local_path(uri)), local_path(folder)
    return _is_below(path, posixpath.normpath(local)) or _is_below(path, os.path.realpath(local))


def _is_remote_inside(uri: str, folder: str) -> bool:
    protocol, other = split_protocol(folder)[0], split_protocol(uri)[0]
    if any(ord(character) < 32 for character in uri):  # some clients remove them, which can create another path
        return False
    if protocol != other or ".." in unquote(uri).split("/") or is_chain(uri.removeprefix(folder)):
        return False
    if uri.startswith(f"{folder}/"):
        return True
    try:
        kind = fsspec.get_filesystem_class(protocol)  # only the class: an instance may open a connection
    except (ImportError, ValueError):  # such a URI cannot be read either
        return False
    if kind._get_kwargs_from_urls(uri) != kind._get_kwargs_from_urls(folder):
        return False
    return _is_below(str(kind._strip_protocol(uri)), str(kind._strip_protocol(folder)))


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _real(path: str) -> str:
    return os.path.realpath(local_path(path))


def _outside(name: str, confinement: Confinement) -> RowError:
    folder, section = confinement.folder, confinement.section
    return RowError(
        "outside",
        f"the image {name[:200]!r} is outside {folder}",
        f"move it there, set '{section}.images' to a folder with all images,"
        f" or set '{section}.allow_outside' if you trust the data",
    )
