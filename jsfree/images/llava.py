"""Lists the images of a LLaVA instruction file: a JSON list of rows or JSON lines. Conversations are ignored."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from jsfree.config import Source
from jsfree.errors import RowError, SourceError
from jsfree.images.confinement import confinement_of
from jsfree.images.json_rows import json_rows
from jsfree.images.listing import (
    Entry,
    Unusable,
    absolute_uri,
    entry_of,
    images_root,
    open_path,
    reported_as_source_error,
)
from jsfree.texts import readable
from jsfree.uris import has_scheme


def llava_images(source: Source) -> Iterator[Entry | Unusable]:
    """List the rows that have an image; text-only rows are skipped.

    Raises:
        SourceError: the path is missing or unreadable, the file is not JSON, or none of its rows has an image.
    """
    path = str(source.path)
    filesystem, inner = open_path(path)
    with reported_as_source_error(path):
        if filesystem.isdir(inner):
            raise SourceError(f"{path} is a folder", "set 'source.path' to the JSON file in it")
    uri = absolute_uri(filesystem, inner)
    root, confinement = images_root(source, uri), confinement_of(source)
    name, number, images, row = readable(posixpath.basename(inner)), -1, 0, None
    with reported_as_source_error(path, Exception), filesystem.open(inner, "rb") as file:
        for number, row in enumerate(json_rows(file, path)):
            try:
                image = _image_of(row)
                if image is None:
                    continue
                entry: Entry | Unusable = entry_of(image, root, confinement)
            except RowError as error:
                entry = Unusable(f"{name}:{number}", RowError(error.kind, f"{path}, row {number}: {error}"))
            images += 1
            yield entry
    if number == 0 and not images:
        raise SourceError(
            f"{path} has one row, of type {type(row).__name__}, without the key 'image'",
            "expected a list of rows with this key",
        )
    if not images:
        raise SourceError(f"{path}: none of its {number + 1} rows has the key 'image'", "correct 'source.path'")


def _image_of(row: Any) -> str | None:
    """Return the image path of a row, or None for a text-only row.

    Raises:
        RowError: the row is not in the format of LLaVA (``malformed``).
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        kind = "null" if row is None else type(row).__name__
        raise RowError("malformed", f"is {kind}, expected keys 'id', 'image', 'conversations'", "remove it")
    image = row.get("image")
    if image is None or image == "":
        return None
    if not isinstance(image, str):
        raise RowError("malformed", f"key 'image' is {type(image).__name__}", "expected one path as a string")
    return image if has_scheme(image) else posixpath.normpath(image)
