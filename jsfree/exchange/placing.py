"""Where the image of an exported pair goes: into the record, into a file beside it, or nowhere."""

from __future__ import annotations

import hashlib

from jsfree.config import Source
from jsfree.errors import ConfigError
from jsfree.exchange.formats import Placed, Placement
from jsfree.images.decoding import check_image, image_bytes
from jsfree.images.ranges import Cell, Escaped, Part, parse_address
from jsfree.run.folder import Folder
from jsfree.schemas import ImageRef

_PLACES = {
    type(None): "in the run's own tables",
    Part: "inside a tar file",
    Cell: "inside a Parquet table",
    Escaped: "in a file whose name is not UTF-8",
}
EXTENSIONS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
IMAGES = "images"


class Placer:
    """Places images one by one; an image that several pairs share is copied once."""

    def __init__(self, placement: Placement, out: Folder, limits: Source) -> None:
        self._placement = placement
        self._out = out / IMAGES
        self._limits = limits
        self._copied: set[str] = set()

    def place(self, image: ImageRef) -> Placed:
        """The image as a record has it.

        Raises:
            RowError: the image is missing, unreadable, none, or beyond the run's limits.
            ConfigError: there is no file that could be referred to.
        """
        if self._placement == "reference":
            return Placed(_reference(image))
        content = image_bytes(image, self._limits)
        name = _file_name(content, image, self._limits)
        if self._placement == "embed":
            return Placed(name, content)
        if name not in self._copied:
            self._out.write(name, content)
            self._copied.add(name)
        return Placed(f"{IMAGES}/{name}")


def _reference(image: ImageRef) -> str:
    uri = image["uri"]
    part = None if uri is None else parse_address(uri)
    if uri is not None and part is None:
        return uri
    where = _PLACES[type(part)]
    raise ConfigError(
        f"--images reference: image {image['id']} is {where}, so there is no file to refer to", "use --images copy"
    )


def _file_name(content: bytes, image: ImageRef, limits: Source) -> str:
    """A name that follows from the content, with the extension that its header stands for."""
    kind = check_image(content, image["id"], limits).format or ""
    return hashlib.sha256(content).hexdigest()[:32] + EXTENSIONS[kind]
