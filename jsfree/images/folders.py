"""Lists the images of a folder and all folders below it, local or behind any fsspec URI.

A file is an image by its extension. One whose extension is not commonly known (or that has none) is opened, and is an
image if its first bytes say so.
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
from jsfree.images.formats import EXTENSIONS, FORMATS, OTHER_FORMATS, PREFIX, by_content, by_name
from jsfree.images.listing import Entry, Place, address, explained, files_below, opened, read_ahead
from jsfree.images.ranges import uri_of
from jsfree.texts import readable

_log = logging.getLogger(__name__)
READERS = 16
"""Files of a store that are looked into at once."""


def folder_images(source: Source) -> Iterator[Entry]:
    """Every image below the folder, in no order; its id is its path there.

    Raises:
        SourceError: the path is missing, unreadable or no folder, or holds no images.
    """
    path = str(source.path)
    filesystem, folder = opened(path)
    with explained(path):
        if not filesystem.isdir(folder):
            kinds = "llava_json, parquet or webdataset"
            raise SourceError(f"{path} is a file, not a folder", f"set 'source.kind' to {kinds} to read it")
    root = address(filesystem, folder.rstrip("/"))
    place, found, others = Place(f"{root}/"), 0, Counter[str]()
    with explained(path, Exception):
        for name in _images(filesystem, folder, others):
            found += 1
            uri = f"{root}/{name}"
            literal = uri_of(uri)
            yield Entry(name, place, name) if literal == uri else Entry(readable(name), Place(""), literal)
    known = {name: others[name] for name in dict.fromkeys(OTHER_FORMATS.values()) if others[name]}
    named = " and ".join(f"{count} {name}" for name, count in known.items())
    if not found:
        raise _nothing(path, named, has_tars=bool(others[".tar"]))
    if named:
        _log.warning("%s: %s files are passed over, because these formats are not read; convert them", path, named)


def _images(filesystem: Any, folder: str, others: Counter[str]) -> Iterator[str]:
    """Images below a folder; ``others`` counts the formats of files that are none."""
    is_local = isinstance(filesystem, LocalFileSystem)
    unknown = []
    for name in files_below(filesystem, folder):
        kind = by_name(name)
        if kind == "unknown" and is_local:
            kind = _kind(_local_prefix(f"{folder}/{name}"), others)
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
            if _kind(content, others) == "image":
                yield name


def _kind(prefix: bytes, others: Counter[str]) -> Literal["image", "other"]:
    """What a file without a known extension is, by its first bytes."""
    if kind := by_content(prefix):
        others[kind] += kind not in FORMATS
    return "image" if kind in FORMATS else "other"


def _local_prefix(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            return b""
        with open(path, "rb", buffering=0) as file:
            return file.read(PREFIX)
    except OSError:
        return b""


def _nothing(path: str, named: str, *, has_tars: bool) -> SourceError:
    if has_tars:
        return SourceError(f"{path} holds .tar files and no images", "set 'source.kind' to webdataset to read them")
    if named:
        return SourceError(
            f"{path} holds {named} files, which are not read, and no {', '.join(FORMATS)};"
            " convert them, for example by `magick mogrify -format jpg`"
        )
    return SourceError(f"{path} holds no images (looked for {', '.join(EXTENSIONS)})", "correct 'source.path'")
