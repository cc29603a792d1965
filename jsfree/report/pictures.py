"""Pictures of the page: an image of a run as a small ``data:`` URI."""

from __future__ import annotations

import base64
import io
import logging

from PIL import Image

from jsfree.config import Source
from jsfree.errors import JsfreeError
from jsfree.images.decoding import load_image
from jsfree.schemas import ImageRef

SIDE = 256
_log = logging.getLogger(__name__)


def data_uri(image: ImageRef, source: Source) -> str | None:
    """Encode an image as a JPEG of at most ``SIDE`` x ``SIDE`` pixels; None, with a log line, if it cannot be read.

    A scene of MiniWorld is drawn again, larger than the captioner saw it. ``source`` limits bytes and pixels.
    """
    try:
        picture = _scene(image["id"]) if source.kind == "miniworld" else load_image(image, source).image
    except JsfreeError as error:
        _log.warning("no picture of %s in the report: %s", image["id"], error)
        return None
    return _encode(picture)


def content_uri(content: bytes) -> str:
    """Encode a picture that was checked when it was stored, as ``data_uri`` does."""
    with Image.open(io.BytesIO(content)) as picture:
        return _encode(picture.convert("RGB"))


def _encode(picture: Image.Image) -> str:
    picture.thumbnail((SIDE, SIDE))
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()


def _scene(scene_id: str) -> Image.Image:
    from jsfree.miniworld import world

    return world.draw(world.scene_from_id(scene_id), scale=SIDE // world.SIZE)
