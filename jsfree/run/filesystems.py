"""Filesystems behind fsspec, with errors that a user can act on.

A path without ``scheme://`` is local and literal: ``#``, ``?``, ``%``, ``::`` and brackets in it mean nothing.
A protocol's package may be missing, and every store's client has errors of its own, many of them no OSError: for
missing credentials and for a server that does not answer above all.
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
"""The extra of this project that holds a protocol's package."""
# fsspec takes every '::' for a chain of filesystems, also one within the name of a file.
_CHAIN = re.compile(r"::(?:/|[a-z][a-z0-9+.-]*(?:::|://))", re.IGNORECASE)


def is_chain(uri: str) -> bool:
    """Whether a URI chains filesystems, such as ``simplecache::s3://bucket/x``, one of which may be anywhere."""
    return _CHAIN.search(uri) is not None


def filesystem_of(uri: str) -> tuple[Any, str]:
    """The filesystem of a path or URI, and the absolute path on it.

    A local path is taken literally, except that a leading ``~`` stands for the home folder if nothing has that name.

    Raises:
        ImportError: the package that speaks the protocol is not installed.
        ValueError: no package is known to speak it.
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
    """A local path from the root on; ``..`` stays, because behind a link only the system can follow it."""
    if path.startswith("~") and not os.path.lexists(path):
        path = os.path.expanduser(path)
    path = path.removeprefix("./")
    absolute = os.path.join(os.getcwd(), "" if path == "." else path)
    return absolute.rstrip("/") or "/"


def _unchained(uri: str) -> tuple[Any, str]:
    """What ``fsspec.url_to_fs`` does for a URI that is no chain."""
    protocol = str(split_protocol(uri)[0])
    kind = fsspec.get_filesystem_class(protocol)
    return fsspec.filesystem(protocol, **kind._get_kwargs_from_urls(uri)), kind._strip_protocol(uri)


def nearest_existing(path: str) -> Path:
    """The path itself if it exists, else its nearest ancestor that exists; an inaccessible path counts as missing."""
    found = Path(path).absolute()
    while not os.path.exists(found):  # Path.exists raises PermissionError where this returns False
        found = found.parent
    return found


def free_bytes(path: str) -> int:
    """Free space on the disk of a path, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(path)).free


def reason(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
