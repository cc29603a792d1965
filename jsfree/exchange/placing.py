"""Stores the image of an exported pair: in the record, in a file next to the records, or by reference."""

from __future__ import annotations

import hashlib

from jsfree.config import Source
from jsfree.errors import ConfigError
from jsfree.exchange.formats import Placement, StoredImage
from jsfree.images.decoding import check_image, image_bytes
from jsfree.images.ranges import Cell, Escaped, Part, parse_address
from jsfree.run.folder import Folder
from jsfree.schemas import ImageRef

_LOCATIONS = {
    type(None): "in the run's own tables",
    Part: "inside a tar file",
    Cell: "inside a Parquet table",
    Escaped: "in a file whose name is not UTF-8",
}
EXTENSIONS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
IMAGES = "images"


class ImageStore:
    """Stores images one by one; an image that several pairs share is copied once."""

    def __init__(self, placement: Placement, out: Folder, limits: Source) -> None:
        self._placement = placement
        self._out = out / IMAGES
        self._limits = limits
        self._copied: set[str] = set()

    def place(self, image: ImageRef) -> StoredImage:
        """Store an image and return what the record contains.

        Raises:
            RowError: the image is missing, unreadable, or beyond the run's limits.
            ConfigError: there is no file to refer to.
        """
        if self._placement == "reference":
            return StoredImage(_reference(image))
        content = image_bytes(image, self._limits)
        name = _file_name(content, image, self._limits)
        if self._placement == "embed":
            return StoredImage(name, content)
        if name not in self._copied:
            self._out.write(name, content)
            self._copied.add(name)
        return StoredImage(f"{IMAGES}/{name}")


def _reference(image: ImageRef) -> str:
    uri = image["uri"]
    part = None if uri is None else parse_address(uri)
    if uri is not None and part is None:
        return uri
    location = _LOCATIONS[type(part)]
    raise ConfigError(
        f"--images reference: image {image['id']} is {location}, so there is no file to refer to", "use --images copy"
    )


def _file_name(content: bytes, image: ImageRef, limits: Source) -> str:
    """A file name from the hash of the content, with the extension of its image format."""
    kind = check_image(content, image["id"], limits).format or ""
    return hashlib.sha256(content).hexdigest()[:32] + EXTENSIONS[kind]
