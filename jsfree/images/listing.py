"""Lists the images of a folder, a LLaVA JSON file, Parquet tables or tar files, local or behind any fsspec URI.

Nothing here opens an image. Every listing is without repetitions; its order means nothing.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from jsfree.config import Source
from jsfree.errors import SourceError
from jsfree.filesystems import filesystem_of, reason

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Candidate(NamedTuple):
    """An image that could be used: at ``uri``, or in row ``row`` of the Parquet file ``table``.

    Images are drawn by ``key`` where there is one, else by ``id``.
    """

    id: str
    uri: str | None = None
    table: str | None = None
    row: int = -1
    key: str | None = None


def listing(source: Source) -> list[Candidate]:
    """Every image of ``source`` once; of several with one id the first.

    Raises:
        SourceError: the path is missing or unreadable, holds no images, or is not of the kind it should be.
    """
    return distinct(candidates(source))


def candidates(source: Source) -> Iterable[Candidate]:
    """Every entry of ``source``, as often as it is there.

    Raises:
        SourceError: as ``listing``.
    """
    from jsfree.images.tables import table_images
    from jsfree.images.tars import tar_images

    listers = {
        "folder": _folder_images,
        "llava_json": _llava_images,
        "parquet": table_images,
        "webdataset": tar_images,
    }
    return listers[source.kind](source)


def distinct(entries: Iterable[Candidate]) -> list[Candidate]:
    """The first of the entries with each id."""
    unique: dict[str, Candidate] = {}
    for candidate in entries:
        unique.setdefault(candidate.id, candidate)
    return list(unique.values())


def opened(path: str, setting: str = "'source.path' (or 'evaluate.source.path')") -> tuple[Any, str]:
    """The filesystem of ``path`` and the path on it; ``setting`` is what a user would have to correct.

    Raises:
        SourceError: there is nothing at ``path``, or no filesystem for it.
    """
    with explained(path, Exception):  # every filesystem has errors of its own for refused access
        filesystem, inner = filesystem_of(os.path.expanduser(path))
        if filesystem.exists(inner):
            return filesystem, inner
    at = "" if "://" in path or os.path.isabs(os.path.expanduser(path)) else f" in {os.getcwd()}"
    raise SourceError(f"{path} does not exist{at}; correct {setting}")


@contextmanager
def explained(path: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn a filesystem's error into one line that names the path; ``errors`` are those to expect beside the usual."""
    expected: tuple[type[Exception], ...] = (OSError, ImportError, ValueError, *errors)
    try:
        yield
    except SourceError:
        raise
    except expected as error:
        raise SourceError(f"{path} cannot be read: {reason(error)}; check the path and your access to it") from error


def normalised(path: str) -> str:
    """One spelling for a path or URI, to see whether two are the same."""
    if "://" in path and not path.startswith("file://"):
        return path.rstrip("/")
    return os.path.realpath(os.path.expanduser(path.removeprefix("file://")))


def beside(source: Source, path: str) -> str:
    """Where images with relative paths start: ``source.images``, else the folder ``path`` is in."""
    if not source.images:
        return posixpath.dirname(path)
    # Absolute, because workers of a cluster have other working directories.
    root = source.images if "://" in source.images else os.path.abspath(os.path.expanduser(source.images))
    return root.rstrip("/")


def located(root: str, path: str) -> str:
    """The URI of an image path: as it is when absolute, else below ``root``."""
    return path if "://" in path or path.startswith("/") or not root else f"{root}/{path}"


def address(filesystem: Any, path: str) -> str:
    """What opens ``path`` without the filesystem at hand."""
    return path if isinstance(filesystem, LocalFileSystem) else str(filesystem.unstrip_protocol(path))


def files_below(filesystem: Any, folder: str) -> list[str]:
    """Paths, relative to ``folder``, of all files below it, without hidden files and folders."""
    root = folder.rstrip("/")
    relative = (str(found)[len(root) :].lstrip("/") for found in filesystem.find(folder))
    return [path for path in relative if not any(part.startswith(".") for part in path.split("/"))]


def _folder_images(source: Source) -> Iterable[Candidate]:
    path = str(source.path)
    filesystem, folder = opened(path)
    with explained(path):
        if not filesystem.isdir(folder):
            kinds = "llava_json, parquet or webdataset"
            raise SourceError(f"{path} is a file, not a folder; set 'source.kind' to {kinds} to read it")
        files = files_below(filesystem, folder)
    images = [found for found in files if found.lower().endswith(EXTENSIONS)]
    if not images and any(found.endswith(".tar") for found in files):
        raise SourceError(f"{path} holds .tar files and no images; set 'source.kind' to webdataset to read them")
    if not images:
        raise SourceError(f"{path} holds no images (looked for {', '.join(EXTENSIONS)}); correct 'source.path'")
    root = address(filesystem, folder.rstrip("/"))
    return [Candidate(found, f"{root}/{found}") for found in images]


def _llava_images(source: Source) -> Iterable[Candidate]:
    path = str(source.path)
    filesystem, inner = opened(path)
    with explained(path):
        if filesystem.isdir(inner):
            raise SourceError(f"{path} is a folder; 'source.path' of llava_json is the JSON file")
        content = filesystem.cat_file(inner)
    try:
        rows = json.loads(content)
    except ValueError as error:
        raise SourceError(f"{path} is no valid JSON ({error}); llava_json reads one list of rows") from error
    if not isinstance(rows, list):
        raise SourceError(f"{path}: expected a list of rows with the key 'image', found {type(rows).__name__}")
    names = [name for number, row in enumerate(rows) if (name := _image_of(path, number, row))]
    if not names:
        raise SourceError(f"{path}: none of its {len(rows)} rows has the key 'image'; nothing to caption")
    root = beside(source, address(filesystem, inner))
    return [Candidate(name, located(root, name)) for name in names]


def _image_of(path: str, number: int, row: object) -> str | None:
    """The image path of a LLaVA row; None for a row of text only."""
    if not isinstance(row, dict):
        raise SourceError(f"{path}: row {number} is {type(row).__name__}, expected keys 'id', 'image', 'conversations'")
    image = row.get("image")
    if image is None or image == "":
        return None
    if not isinstance(image, str):
        raise SourceError(f"{path}: row {number}, key 'image' is {type(image).__name__}, expected one path as a string")
    return image if "://" in image else posixpath.normpath(image)
