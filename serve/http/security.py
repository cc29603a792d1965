"""Checks of images and texts before they reach a model.

An image must be a data URL in one of three formats, or a URL of an allowed host. It is checked in an order that rejects
large input early: URL, declared format, length of the base64, length of the file, actual format, number of pixels. The
replica decodes the pixels later, within the same limits. The declared and the actual format can differ if both are
allowed, because clients derive the former from file extensions.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from PIL import Image

from jsfree.config import Serve, Source
from jsfree.errors import RowError
from jsfree.images.decoding import check_image, load_image
from jsfree.schemas import ImageRef
from serve.http import data_urls
from serve.http.bodies import large_content
from serve.http.errors import ApiError, invalid
from serve.http.remote_images import ImageFetcher, parse_url

FORMATS = ("PNG", "JPEG", "WEBP")
MEDIA_TYPES = {"image/png", "image/x-png", "image/jpeg", "image/jpg", "image/pjpeg", "image/webp"}
IMAGE_TOKEN = "<image>"
BYTES_PER_PIXEL, BYTES_PER_WEBP_PIXEL = 12, 20
"""Bytes that decoding allocates for a pixel, at most (``jsfree.images.decoding``)."""
MAX_DECODED_BYTES = 150_000_000
"""Maximum memory for decoding an image, unless ``max_pixels`` allows more: 7.5 megapixels of WEBP."""
MAX_JPEG_SEGMENTS = 10_000
"""Maximum number of application segments and comments of a JPEG file, for each of which Pillow makes objects."""
MAX_PNG_CHUNKS = 10_000
"""Maximum number of chunks of a PNG file, each of which Pillow reads in Python."""
PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START, JPEG_SEGMENTS = b"\xff\xd8", tuple(bytes((0xFF, kind)) for kind in (*range(0xE0, 0xF0), 0xFE))
LARGE_DECODED_BYTES = 40_000_000
"""Images above this size are decoded one at a time."""
REASONS = {
    "undecodable": "the image is damaged, or is not a png, jpeg or webp file",
    "unsupported_format": "the image is not a png, jpeg or webp file; convert it to one of them",
    "too_many_bytes": "the image file is larger than {max_image_bytes} bytes; compress it",
    "too_many_pixels": "the image has more than {max_pixels} pixels; scale it down",
    "too_much_memory": "the image has too many pixels for its format; scale it down, or send a png or jpeg file",
    "too_small": "the image is too small: its shorter side must have at least {min_side} pixels",
}


_decoding_large = threading.Lock()


def image_limits(settings: Serve) -> Source:
    """The server's limits of an image as settings of an image source."""
    return Source(max_bytes=settings.max_image_bytes, max_pixels=settings.max_pixels, min_side=settings.min_side)


def checked_image(url: str, settings: Serve, param: str) -> bytes:
    """The encoded image of a URL.

    Raises:
        ApiError: ``url`` is neither a data URL of an allowed format nor one that may be fetched, or the image is
            damaged or exceeds a limit.
    """
    remote = parse_url(url, settings.allowed_image_hosts) if settings.allowed_image_hosts else None
    if remote is not None:
        content = ImageFetcher(settings.max_image_bytes).fetch(remote, param)
    else:
        content = _data_content(url, settings, param)
    if _has_too_many_parts(content):
        raise image_error("undecodable", settings, param)
    try:
        opened = check_image(content, "sent", image_limits(settings), FORMATS)
    except RowError as error:
        raise image_error(error.kind, settings, param) from None
    if decoded_bytes(opened) > max(MAX_DECODED_BYTES, BYTES_PER_PIXEL * settings.max_pixels):
        raise image_error("too_much_memory", settings, param)
    return content


def _has_too_many_parts(content: bytes) -> bool:
    """Whether a JPEG or PNG file has so many segments or chunks that opening it would take long."""
    if content.startswith(JPEG_START):
        return sum(map(content.count, JPEG_SEGMENTS)) > MAX_JPEG_SEGMENTS
    if not content.startswith(PNG_START):
        return False
    position, chunks = len(PNG_START), 0
    while position < len(content) and chunks <= MAX_PNG_CHUNKS:
        position += 12 + int.from_bytes(content[position : position + 4], "big")  # length, type, content, checksum
        chunks += 1
    return chunks > MAX_PNG_CHUNKS


@contextmanager
def decoded_image(content: bytes, settings: Serve) -> Iterator[Image.Image]:
    """Decode an image for the duration of a block; it waits while another large image is decoded.

    Raises:
        RowError: the image is damaged, or exceeds a limit.
    """
    reference: ImageRef = {"id": "sent", "uri": None, "bytes": content, "sha256": None}
    with _decoding_large if is_large_image(content, settings) else nullcontext():
        yield load_image(reference, image_limits(settings)).image


def is_large_image(content: bytes, settings: Serve) -> bool:
    """Whether an image is one of those that are decoded one at a time, by its header.

    Raises:
        RowError: the header is damaged, or exceeds a limit.
    """
    return decoded_bytes(check_image(content, "sent", image_limits(settings), FORMATS)) > LARGE_DECODED_BYTES


def decoded_bytes(opened: Image.Image) -> int:
    """Bytes that decoding an image allocates, at most."""
    return opened.width * opened.height * (BYTES_PER_WEBP_PIXEL if opened.format == "WEBP" else BYTES_PER_PIXEL)


def _data_content(url: str, settings: Serve, param: str) -> bytes:
    """The decoded content of a data URL.

    Raises:
        ApiError: ``url`` is not a data URL of an allowed format, or too long.
    """
    given = data_urls.parse(url)
    if given is None or given.media_type not in MEDIA_TYPES:
        others = "URLs of other hosts" if settings.allowed_image_hosts else "other URLs"
        message = f"send the image as a data URL: data:image/png;base64,... (png, jpeg or webp); {others} are not"
        raise invalid(f"{message} fetched", param, "invalid_image_url")
    try:
        with large_content(len(url)):
            return given.content(settings.max_image_bytes)
    except data_urls.TooLongError:
        raise image_error("too_many_bytes", settings, param) from None
    except ValueError:
        raise invalid("the image is not valid base64", param, "invalid_base64") from None


def image_error(kind: str, settings: Serve, param: str) -> ApiError:
    """The error for an image, by the kind of its ``RowError``."""
    return invalid(image_problem(kind, settings), param, "invalid_image")


def image_problem(kind: str, settings: Serve) -> str:
    """The message for the client about an image, by the kind of its ``RowError``."""
    return REASONS.get(kind, REASONS["undecodable"]).format(**settings.model_dump())


def checked_prompt(text: str, settings: Serve, param: str) -> str:
    """Return ``text`` unchanged.

    Raises:
        ApiError: the text is empty, too long, or contains the image token, which would stand for another image.
    """
    if not text.strip():
        raise invalid("the text is empty", param)
    if len(text) > settings.max_prompt_chars:
        raise invalid(f"the text is longer than {settings.max_prompt_chars} characters", param, "string_too_long")
    if IMAGE_TOKEN in text:
        raise invalid(f"the text contains {IMAGE_TOKEN!r}, which stands for an image; remove it", param)
    return text
