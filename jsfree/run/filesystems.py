"""Access to local and remote filesystems with fsspec.

A path without ``scheme://`` is local and literal: ``#``, ``?``, ``%``, ``::`` and brackets have no special meaning.
Remote filesystems need optional packages and have their own exceptions, many of which are not ``OSError``, in
particular for missing credentials and unreachable servers.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import split_protocol

from jsfree.uris import has_scheme

EXTRAS = {"s3": "aws", "s3a": "aws"}
"""Optional dependency group of jsfree for each protocol."""
# fsspec treats every '::' as a chain of filesystems, even in the name of a file.
_CHAIN = re.compile(r"::(?:/|[a-z][a-z0-9+.-]*(?:::|://))", re.IGNORECASE)


def is_chain(uri: str) -> bool:
    """Whether a URI chains filesystems, such as ``simplecache::s3://bucket/x``."""
    return _CHAIN.search(uri) is not None


def filesystem_of(uri: str) -> tuple[Any, str]:
    """Return the filesystem of a path or URI, and the absolute path on it.

    A local path is literal, except that a leading ``~`` is expanded unless a file of this name exists.

    Raises:
        ImportError: the package for the protocol is not installed.
        ValueError: the protocol is unknown.
    """
    if not has_scheme(uri):
        return fsspec.filesystem("file"), _absolute(uri)
    try:
        filesystem, path = fsspec.url_to_fs(uri) if "::" not in uri or is_chain(uri) else _unchained(uri)
    except ImportError as error:
        extra = EXTRAS.get(split_protocol(uri)[0] or "")
        if extra is None:
            raise
        raise ImportError(f"{error}: `uv sync --frozen --extra {extra}`") from error
    return filesystem, str(path)


def _absolute(path: str) -> str:
    """Make a local path absolute. ``..`` is kept, because it cannot be resolved without following links."""
    if path.startswith("~") and not os.path.lexists(path):
        path = os.path.expanduser(path)
    path = path.removeprefix("./")
    absolute = os.path.join(os.getcwd(), "" if path == "." else path)
    return absolute.rstrip("/") or "/"


def _unchained(uri: str) -> tuple[Any, str]:
    """Apply ``fsspec.url_to_fs`` to a URI with ``::`` that is not a chain."""
    protocol = str(split_protocol(uri)[0])
    kind = fsspec.get_filesystem_class(protocol)
    return fsspec.filesystem(protocol, **kind._get_kwargs_from_urls(uri)), kind._strip_protocol(uri)


def nearest_existing(path: str) -> Path:
    """The path itself if it exists, else its nearest ancestor that exists; an inaccessible path counts as missing."""
    ancestor = Path(path).absolute()
    while not os.path.exists(ancestor):  # Path.exists may raise PermissionError
        ancestor = ancestor.parent
    return ancestor


def free_bytes(path: str) -> int:
    """Free space on the disk of a path, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(path)).free


def reason(error: BaseException) -> str:
    """Message of an error in one line."""
    return " ".join(str(getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
