"""Where the image that a record names is, and whether a record may name it.

Records come from other people: a path in one must not make this machine read, train on and export any file that it
can reach. Unless a setting allows more, an image is inside the folder that was configured, by its real path.
"""

from __future__ import annotations

import os
from urllib.parse import unquote

from jsfree.errors import RowError
from jsfree.images.listing import located
from jsfree.images.ranges import part_at

MAX_CHARACTERS = 4096
"""Longest path that Linux opens; what is longer is no path."""
LOCAL = ("file://", "local://")


def image_uri(path: str, start: str, folder: str, *, allow_outside: bool) -> str:
    """The path or URI of an image.

    Args:
        path: as it stands in the record.
        start: where relative paths start, an absolute path or a URI.
        folder: what the image must be inside of, an absolute path or a URI.

    Raises:
        RowError: ``malformed`` if it is no path, ``outside`` if it leads out of ``folder``.
    """
    if path.startswith("data:") or len(path) > MAX_CHARACTERS:
        raise RowError(
            "malformed",
            f"the image is a text of {len(path)} characters, not a path; write images as bytes into Parquet, or into"
            " files with their paths in the records",
        )
    uri = located(start, path)
    for scheme in LOCAL:
        uri = uri.removeprefix(scheme)
    if not allow_outside and not _is_inside(uri, folder):
        raise RowError(
            "outside",
            f"the image {path!r} is outside {folder}; move it there, set 'imported.images' to a folder that holds all"
            " images, or set 'imported.allow_outside' if you trust the records",
        )
    return uri


def _is_inside(uri: str, folder: str) -> bool:
    for scheme in LOCAL:
        folder = folder.removeprefix(scheme)
    if "://" in folder or not uri.startswith("/"):
        return ".." not in unquote(uri).split("/") and "::" not in uri and uri.startswith(f"{folder.rstrip('/')}/")
    part = part_at(uri)
    path = os.path.realpath(uri if part is None else part.file)
    return path.startswith(os.path.join(os.path.realpath(folder), ""))
