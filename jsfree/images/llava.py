"""Lists the images that a LLaVA instruct file names: a JSON list of rows, or JSON lines; conversations are dropped."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from jsfree.config import Source
from jsfree.errors import RowError, SourceError
from jsfree.images.confinement import confinement_of
from jsfree.images.json_rows import json_rows
from jsfree.images.listing import Entry, Unusable, address, beside, entry_of, explained, opened
from jsfree.texts import readable
from jsfree.uris import has_scheme


def llava_images(source: Source) -> Iterator[Entry | Unusable]:
    """The image of every row that has one, and every row whose image cannot be used; rows of text only are passed over.

    Raises:
        SourceError: the path is missing or unreadable, the file is no JSON, or none of its rows has an image.
    """
    path = str(source.path)
    filesystem, inner = opened(path)
    with explained(path):
        if filesystem.isdir(inner):
            raise SourceError(f"{path} is a folder", "'source.path' of llava_json is the JSON file")
    uri = address(filesystem, inner)
    root, confinement = beside(source, uri), confinement_of(source)
    name, number, images, row = readable(posixpath.basename(inner)), -1, 0, None
    with explained(path, Exception), filesystem.open(inner, "rb") as file:
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
            f"{path}: expected a list of rows with the key 'image', found {type(row).__name__} without it"
        )
    if not images:
        raise SourceError(f"{path}: none of its {number + 1} rows has the key 'image'", "nothing to caption")


def _image_of(row: Any) -> str | None:
    """The image path of a row; None for a row of text only.

    Raises:
        RowError: it is no LLaVA row (``malformed``).
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
        raise RowError("malformed", f"key 'image' is {type(image).__name__}, expected one path as a string")
    return image if has_scheme(image) else posixpath.normpath(image)
