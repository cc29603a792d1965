"""Entries of a listing, and the functions on paths that all listers share.

A lister (``folders``, ``llava``, ``tables``, ``tars``) yields entries one at a time, without opening images.
``drawing`` packs them into Arrow arrays.
"""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from fsspec.implementations.local import LocalFileSystem

from jsfree.config import Source
from jsfree.errors import RowError, SourceError
from jsfree.images.confinement import Confinement, absolute, check_spelling
from jsfree.images.ranges import uri_of
from jsfree.run.filesystems import filesystem_of, reason
from jsfree.texts import require_text
from jsfree.uris import has_scheme

Content = TypeVar("Content")
LONGEST_PATH = 4096
_BASE64 = re.compile(r"(?:[/_]9j[/_]|iVBORw0KGgo|R0lGOD|UklGR|Qk0|SUkq|TU0A)[A-Za-z0-9+/_\s-]{80,}={0,2}\s*")
"""Base64 that starts with the magic bytes of a supported format and is too long for a path."""


class Container(NamedTuple):
    """A folder or file with images: the common ``prefix`` of their URIs, and the name of the tar file, if it is one."""

    prefix: str
    shard: str | None = None


class Entry(NamedTuple):
    """An image, at the URI ``container.prefix + tail``.

    The position in the order depends on ``id`` only. If several tar files contain the same id, the name of the tar file
    is added to it later.
    """

    id: str
    container: Container
    tail: str


class Unusable(NamedTuple):
    """A row without a usable image; ``id`` consists of its file name and row number."""

    id: str
    error: RowError


def open_path(path: str, setting: str = "'source.path' (or 'evaluate.source.path')") -> tuple[Any, str]:
    """Return the filesystem of ``path`` and the path on it.

    Args:
        path: a local path or URI.
        setting: the setting to correct, for the error message.

    Raises:
        SourceError: ``path`` does not exist, or no filesystem supports it.
    """
    with reported_as_source_error(path, Exception):  # filesystems have their own errors for denied access
        filesystem, inner = filesystem_of(path)
        if filesystem.exists(inner):
            return filesystem, inner
    where = "" if has_scheme(path) or os.path.isabs(os.path.expanduser(path)) else f" in {os.getcwd()}"
    raise SourceError(f"{path} does not exist{where}", f"correct {setting}")


@contextmanager
def reported_as_source_error(path: str, *errors: type[Exception]) -> Iterator[None]:
    """Convert errors of a filesystem, and ``errors``, to a ``SourceError`` that names the path."""
    expected: tuple[type[Exception], ...] = (OSError, ImportError, ValueError, *errors)
    try:
        yield
    except SourceError:
        raise
    except expected as error:
        raise SourceError(f"{path} cannot be read: {reason(error)}", "check the path and your access to it") from error


def images_root(source: Source, path: str) -> str:
    """Base folder of relative image paths: ``source.images``, or the folder of ``path``."""
    return absolute(source.images) if source.images else posixpath.dirname(path)


def join_path(root: str, path: str) -> str:
    """Resolve an image path against ``root``; absolute paths and URIs are returned unchanged."""
    return path if has_scheme(path) or path.startswith("/") or not root else f"{root}/{path}"


def absolute_uri(filesystem: Any, path: str) -> str:
    """Convert a path on a filesystem to a URI, or a local path, that is valid without the filesystem object."""
    return path if isinstance(filesystem, LocalFileSystem) else str(filesystem.unstrip_protocol(path))


def files_below(filesystem: Any, folder: str) -> Iterator[str]:
    """List the files below ``folder`` as relative paths, without hidden files and folders."""
    root = folder.rstrip("/")
    if isinstance(filesystem, LocalFileSystem):
        yield from _local_files(root or "/", "")
        return
    for found in filesystem.find(folder):
        path = str(found)[len(root) :].lstrip("/")
        if not any(part.startswith(".") for part in path.split("/")):
            yield path


def _local_files(folder: str, prefix: str) -> Iterator[str]:
    """List local files. Links to folders are not followed; folders without read permission are skipped."""
    waiting = [(folder, prefix)]
    while waiting:
        folder, prefix = waiting.pop()
        try:
            entries = os.scandir(folder)
        except PermissionError:
            continue
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file() or not entry.is_dir():
                    yield prefix + entry.name


def read_ahead(
    readers: ThreadPoolExecutor, read: Callable[[str], Content], names: Iterable[str], max_pending: int = 64
) -> Iterator[tuple[str, Content]]:
    """Yield each name with the result of ``read``, in order, with at most ``max_pending`` reads in advance."""
    waiting: deque[tuple[str, Future[Content]]] = deque()
    for name in names:
        waiting.append((name, readers.submit(read, name)))
        if len(waiting) >= max_pending:
            first, done = waiting.popleft()
            yield first, done.result()
    yield from ((name, done.result()) for name, done in waiting)


def image_uri(name: str, root: str, confinement: Confinement) -> str:
    """Resolve the image path in a row of a data file to an absolute path or a URI.

    Args:
        name: a path relative to ``root``, an absolute path, or a URI.
        root: base folder of relative paths.
        confinement: the folder in which images are allowed.

    Raises:
        RowError: ``name`` is not a path (``malformed``), or is not in the folder (``outside``).
    """
    if len(name) > LONGEST_PATH or name[:5].lower() == "data:" or _BASE64.fullmatch(name):
        raise RowError(
            "malformed",
            f"the image is a string of {len(name)} characters that starts with {name[:20]!r}, not a path",
            "if it is base64, decode it to a column of bytes or to files",
        )
    uri = join_path(root, require_text(name, "the image's path"))
    check_spelling(uri, confinement, name)
    return uri


def entry_of(name: str, root: str, confinement: Confinement, image_id: str | None = None) -> Entry:
    """Create the entry for a row of a source; other arguments and errors as in ``image_uri``.

    Args:
        image_id: id of the image; None: use ``name``.
    """
    uri = image_uri(name, root, confinement)
    if image_id is None:
        image_id = name
    literal = uri_of(uri)
    if literal == uri and uri != name:
        return Entry(image_id, Container(f"{root}/"), name)
    return Entry(image_id, Container(""), literal)


def id_of(value: Any) -> str | None:
    """Convert an id to a string; None for values that are not ids: null, NaN, blank strings, lists and structs."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, list | dict) or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value) if str(value).strip() else None
