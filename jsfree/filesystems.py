"""Filesystems behind fsspec, with errors that a user can act on.

A protocol's package may be missing, and every store's client has errors of its own, many of them no OSError: for
missing credentials and for a server that does not answer above all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import split_protocol

EXTRAS = {"s3": "aws", "s3a": "aws"}
"""The extra of this project that holds a protocol's package."""


def filesystem_of(uri: str) -> tuple[Any, str]:
    """The filesystem of a path or URI, and the path on it.

    Raises:
        ImportError: the package that speaks the protocol is not installed.
        ValueError: no package is known to speak it.
    """
    try:
        filesystem, path = fsspec.url_to_fs(uri)
    except ImportError as error:
        extra = EXTRAS.get(split_protocol(uri)[0] or "")
        if extra is None:
            raise
        raise ImportError(f"{error}: `uv sync --frozen --extra {extra}`") from error
    return filesystem, str(path)


def nearest_existing(path: str) -> Path:
    """The path itself if it exists, else its nearest ancestor that exists; an inaccessible path counts as missing."""
    found = Path(path).absolute()
    while not os.path.exists(found):  # Path.exists raises PermissionError where this returns False
        found = found.parent
    return found


def reason(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
