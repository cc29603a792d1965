"""Keeps the image paths of a data file inside the folder that its user configured.

Somebody else's JSON or Parquet file may name ``../../home/x.png``, ``/etc/x.png`` or a file on another host. Unless
``source.allow_outside`` is set, a row may only name images in ``source.images``, or without it in the folder of the
file (of all tables, where ``source.path`` is a folder of them). Spelling is checked when a source is listed; where
symbolic links lead is checked whenever an image is read, because links can change and the driver may not see them.
"""

from __future__ import annotations

import os
import posixpath
from urllib.parse import unquote

import fsspec
from fsspec.core import split_protocol

from jsfree.config import Source
from jsfree.errors import RowError
from jsfree.filesystems import filesystem_of, has_scheme, is_chain
from jsfree.images.ranges import Escaped, part_at

FILE = ("file://", "local://")
"""Schemes of the local filesystem."""
KINDS = ("llava_json", "parquet")
"""Kinds of sources whose data name paths."""


def check_spelling(uri: str, folder: str, source: Source) -> None:
    """See that ``uri`` lies in ``folder`` by its spelling.

    Raises:
        RowError: it does not (``outside``), and the source does not allow that.
    """
    if not source.allow_outside and not is_inside(uri, folder):
        raise _outside(uri, folder)


def check_links(uri: str | None, source: Source) -> None:
    """See that a local image that lies in the folder of its source still does once links are followed.

    Raises:
        RowError: a link leads out of the folder (``outside``), and the source does not allow that.
    """
    if uri is None or source.allow_outside or source.kind not in KINDS or source.path is None:
        return
    named = part_at(uri)
    if isinstance(named, Escaped):
        uri = named.file
    elif named is not None:
        return  # a part of the source's own file
    folder = confining_folder(source)
    if _is_remote(uri) or _is_remote(folder) or not is_inside(uri, folder):
        return  # an image of another source: the spelling of this one's has been checked
    if not _is_below(os.path.realpath(_local(uri)), os.path.realpath(_local(folder))):
        raise _outside(uri, folder)


def confining_folder(source: Source) -> str:
    """The folder that images named in the data of ``source`` must lie in: absolute, or a URI."""
    if source.images:
        return absolute(source.images)
    path = str(source.path)
    if _is_remote(path):
        is_folder = source.kind == "parquet" and not path.endswith(".parquet")
        return path.rstrip("/") if is_folder else posixpath.dirname(path)
    path = filesystem_of(path)[1]
    return path if source.kind == "parquet" and os.path.isdir(path) else posixpath.dirname(path)


def absolute(folder: str) -> str:
    """A folder as every worker of a cluster finds it, whatever its working directory: absolute, or a URI."""
    return folder.rstrip("/") if has_scheme(folder) else os.path.abspath(filesystem_of(folder)[1])


def is_inside(uri: str, folder: str) -> bool:
    """Whether an absolute path or URI lies in ``folder`` by its spelling."""
    if _is_remote(folder):
        return has_scheme(uri) and _is_remote_inside(uri, folder)
    if uri.startswith(f"{folder}/") and ".." not in uri:
        return True
    if _is_remote(uri):
        return False
    path, local = posixpath.normpath(_local(uri)), _local(folder)
    return _is_below(path, posixpath.normpath(local)) or _is_below(path, os.path.realpath(local))


def _is_remote_inside(uri: str, folder: str) -> bool:
    protocol, other = split_protocol(folder)[0], split_protocol(uri)[0]
    if protocol != other or ".." in unquote(uri).split("/") or is_chain(uri.removeprefix(folder)):
        return False
    if uri.startswith(f"{folder}/"):
        return True
    kind = fsspec.get_filesystem_class(protocol)  # the class alone: an instance may connect to a foreign host
    if kind._get_kwargs_from_urls(uri) != kind._get_kwargs_from_urls(folder):
        return False
    return _is_below(str(kind._strip_protocol(uri)), str(kind._strip_protocol(folder)))


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _is_remote(uri: str) -> bool:
    return has_scheme(uri) and not uri.startswith(FILE)


def _local(uri: str) -> str:
    for scheme in FILE:
        uri = uri.removeprefix(scheme)
    return uri


def _outside(uri: str, folder: str) -> RowError:
    return RowError(
        "outside",
        f"image {uri[:200]} is outside of {folder}; correct its path, or set 'allow_outside: true' in the source"
        " if the file may name any path",
    )
