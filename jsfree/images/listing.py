"""What the listers of all kinds of sources share: the entries that they yield, and the paths in them.

A lister (``folders``, ``llava``, ``tables``, ``tars``) yields entries one by one and opens no image. Nobody keeps
them as objects: ``drawing`` packs what is drawn into Arrow arrays.
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
"""Base64 of the six formats' first bytes; long enough to be no path."""


class Place(NamedTuple):
    """Where images come from: their addresses begin with ``prefix``; ``shard`` names the tar file they are in."""

    prefix: str
    shard: str | None = None


class Entry(NamedTuple):
    """An image that could be used, at ``place.prefix + tail``.

    Images are drawn by ``id``. Where several shards use one id, it is preceded by the shard's name.
    """

    id: str
    place: Place
    tail: str


class Unusable(NamedTuple):
    """A row that names no image, and why; ``id`` is its file's name and its number."""

    id: str
    error: RowError


def opened(path: str, setting: str = "'source.path' (or 'evaluate.source.path')") -> tuple[Any, str]:
    """The filesystem of ``path`` and the path on it; ``setting`` is what a user would have to correct.

    Raises:
        SourceError: nothing exists at ``path``, or no filesystem is known for it.
    """
    with explained(path, Exception):  # every filesystem has errors of its own for refused access
        filesystem, inner = filesystem_of(path)
        if filesystem.exists(inner):
            return filesystem, inner
    at = "" if has_scheme(path) or os.path.isabs(os.path.expanduser(path)) else f" in {os.getcwd()}"
    raise SourceError(f"{path} does not exist{at}", f"correct {setting}")


@contextmanager
def explained(path: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn a filesystem's error into one line that names the path; ``errors`` are expected in addition to the usual."""
    expected: tuple[type[Exception], ...] = (OSError, ImportError, ValueError, *errors)
    try:
        yield
    except SourceError:
        raise
    except expected as error:
        raise SourceError(f"{path} cannot be read: {reason(error)}", "check the path and your access to it") from error


def beside(source: Source, path: str) -> str:
    """Where images with relative paths start: ``source.images``, else the folder of ``path``."""
    return absolute(source.images) if source.images else posixpath.dirname(path)


def located(root: str, path: str) -> str:
    """The URI of an image path: as it is when absolute, else below ``root``."""
    return path if has_scheme(path) or path.startswith("/") or not root else f"{root}/{path}"


def address(filesystem: Any, path: str) -> str:
    """What opens ``path`` without the filesystem at hand."""
    return path if isinstance(filesystem, LocalFileSystem) else str(filesystem.unstrip_protocol(path))


def files_below(filesystem: Any, folder: str) -> Iterator[str]:
    """Paths, relative to ``folder``, of all files below it, without hidden files and folders."""
    root = folder.rstrip("/")
    if isinstance(filesystem, LocalFileSystem):
        yield from _local_files(root or "/", "")
        return
    for found in filesystem.find(folder):
        path = str(found)[len(root) :].lstrip("/")
        if not any(part.startswith(".") for part in path.split("/")):
            yield path


def _local_files(folder: str, prefix: str) -> Iterator[str]:
    """One folder at a time; links to folders are not followed, and a folder that may not be read is passed over."""
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
    readers: ThreadPoolExecutor, read: Callable[[str], Content], names: Iterable[str], most: int = 64
) -> Iterator[tuple[str, Content]]:
    """What ``read`` makes of each name, in order; ``most`` of them are under way or wait to be taken."""
    waiting: deque[tuple[str, Future[Content]]] = deque()
    for name in names:
        waiting.append((name, readers.submit(read, name)))
        if len(waiting) >= most:
            first, done = waiting.popleft()
            yield first, done.result()
    yield from ((name, done.result()) for name, done in waiting)


def image_uri(name: str, root: str, confinement: Confinement) -> str:
    """Where the image is that a row of a data file names: an absolute path or a URI.

    Args:
        name: a path relative to ``root``, an absolute one, or a URI.
        root: where relative paths start.
        confinement: where images may be.

    Raises:
        RowError: the name is no path (``malformed``), or leads ``outside`` by its spelling.
    """
    if len(name) > LONGEST_PATH or name[:5].lower() == "data:" or _BASE64.fullmatch(name):
        shown = f"a text of {len(name)} characters that begins with {name[:20]!r}"
        raise RowError(
            "malformed",
            f"the image is {shown}, not a path",
            "if it is base64, decode it into a column of bytes or into files",
        )
    uri = located(root, require_text(name, "the image's path"))
    check_spelling(uri, confinement, name)
    return uri


def entry_of(name: str, root: str, confinement: Confinement, image_id: str | None = None) -> Entry:
    """The image that a row of a source names; arguments and errors as of ``image_uri``.

    Args:
        image_id: the image's id, where it is not its name.
    """
    uri = image_uri(name, root, confinement)
    if image_id is None:
        image_id = name
    literal = uri_of(uri)
    if literal == uri and uri != name:
        return Entry(image_id, Place(f"{root}/"), name)
    return Entry(image_id, Place(""), literal)


def id_of(value: Any) -> str | None:
    """An id as text; None for one that tells no image from another: null, NaN, blank, or lists and structs."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, list | dict) or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value) if str(value).strip() else None
