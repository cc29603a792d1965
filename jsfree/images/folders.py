"""Lists the images in a local or remote folder, recursively.

Files are classified by extension. A file with an uncommon extension, or none, is classified by its first bytes.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from fsspec.implementations.local import LocalFileSystem

from jsfree.config import Source
from jsfree.errors import SourceError
from jsfree.images.formats import EXTENSIONS, FORMATS, OTHER_FORMATS, PREFIX, format_by_content, kind_by_name
from jsfree.images.listing import (
    Container,
    Entry,
    absolute_uri,
    files_below,
    open_path,
    read_ahead,
    reported_as_source_error,
)
from jsfree.images.ranges import uri_of
from jsfree.texts import readable

_log = logging.getLogger(__name__)
READERS = 16
"""Number of remote files read concurrently."""


def folder_images(source: Source) -> Iterator[Entry]:
    """List the images below a folder, in no particular order. Their ids are their relative paths.

    Raises:
        SourceError: the path is missing, unreadable or not a folder, or it contains no images.
    """
    path = str(source.path)
    filesystem, folder = open_path(path)
    with reported_as_source_error(path):
        if not filesystem.isdir(folder):
            raise SourceError(
                f"{path} is a file, not a folder", "set 'source.kind' to llava_json, parquet or webdataset to read it"
            )
    root = absolute_uri(filesystem, folder.rstrip("/"))
    container, count, others = Container(f"{root}/"), 0, Counter[str]()
    with reported_as_source_error(path, Exception):
        for name in _images(filesystem, folder, others):
            count += 1
            uri = f"{root}/{name}"
            literal = uri_of(uri)
            yield Entry(name, container, name) if literal == uri else Entry(readable(name), Container(""), literal)
    unsupported = " and ".join(
        f"{others[name]} {name}" for name in dict.fromkeys(OTHER_FORMATS.values()) if others[name]
    )
    if not count:
        raise _no_images(path, unsupported, has_tars=bool(others[".tar"]))
    if unsupported:
        _log.warning("%s: ignoring %s files: unsupported formats; convert them", path, unsupported)


def _images(filesystem: Any, folder: str, others: Counter[str]) -> Iterator[str]:
    """List the images below a folder, and count other files by format or extension in ``others``."""
    is_local = isinstance(filesystem, LocalFileSystem)
    unknown = []
    for name in files_below(filesystem, folder):
        kind = kind_by_name(name)
        if kind == "unknown" and is_local:
            kind = _kind_by_content(_local_prefix(f"{folder}/{name}"), others)
        if kind == "image":
            yield name
        elif kind == "unknown":
            unknown.append(name)
        else:
            extension = os.path.splitext(name)[1].lower()
            others[OTHER_FORMATS.get(extension, extension)] += 1

    def prefix(name: str) -> bytes:
        try:
            return bytes(filesystem.cat_file(f"{folder}/{name}", start=0, end=PREFIX))
        except OSError:
            return b""

    with ThreadPoolExecutor(READERS) as readers:
        for name, content in read_ahead(readers, prefix, unknown):
            if _kind_by_content(content, others) == "image":
                yield name


def _kind_by_content(prefix: bytes, others: Counter[str]) -> Literal["image", "other"]:
    """Classify a file by its first bytes, and count unsupported formats in ``others``."""
    if kind := format_by_content(prefix):
        others[kind] += kind not in FORMATS
    return "image" if kind in FORMATS else "other"


def _local_prefix(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block
            return b""
        with open(path, "rb", buffering=0) as file:
            return file.read(PREFIX)
    except OSError:
        return b""


def _no_images(path: str, unsupported: str, *, has_tars: bool) -> SourceError:
    if has_tars:
        return SourceError(f"{path} has .tar files but no images", "set 'source.kind' to webdataset to read them")
    if unsupported:
        return SourceError(
            f"{path} has no {', '.join(FORMATS)}, only {unsupported} files, which are not supported",
            "convert them, for example with `magick mogrify -format jpg`",
        )
    return SourceError(f"{path} has no images (extensions: {', '.join(EXTENSIONS)})", "correct 'source.path'")
