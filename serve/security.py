"""What may reach a model: images as data URLs of three formats within limits, and text without image tokens.

An image is looked at in this order, so that nothing large is worked on before it is allowed: address, declared
format, length of the base64, length of the file, true format, pixels. Its pixels are decoded later, by the
replica, within the same limits.
"""

from __future__ import annotations

import base64
import binascii
import re

from jsfree.config import Serve, Source
from jsfree.errors import RowError
from jsfree.images.decoding import check_image
from serve.errors import ApiError, invalid

DATA_URL = re.compile(r"data:image/(png|jpeg|webp);base64,", re.ASCII)
IMAGE_TOKEN = "<image>"
REASONS = {
    "undecodable": "the image is damaged, or not of the format that its data URL declares",
    "unsupported_format": "the image is not of the format that its data URL declares",
    "too_many_bytes": "the image file is larger than {max_image_bytes} bytes",
    "too_many_pixels": "the image has more than {max_pixels} pixels; scale it down",
    "too_small": "the image is too small or too thin: its short side must be {min_side} pixels at least",
}


def image_limits(settings: Serve) -> Source:
    """The limits of an image as those who decode it take them."""
    return Source(max_bytes=settings.max_image_bytes, max_pixels=settings.max_pixels, min_side=settings.min_side)


def admitted_image(url: str, settings: Serve, param: str) -> bytes:
    """The encoded image of a data URL.

    Raises:
        ApiError: it is no data URL of an allowed format, or breaks a limit.
    """
    matched = DATA_URL.match(url)
    if matched is None:
        message = "give the image as a data URL: data:image/png;base64,... (png, jpeg or webp); no address is fetched"
        raise invalid(message, param, "invalid_image_url")
    encoded = url[matched.end() :].encode("ascii", "replace")
    if len(encoded) > (settings.max_image_bytes + 2) // 3 * 4:
        raise image_error("too_many_bytes", settings, param)
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise invalid("the image's base64 is damaged", param, "invalid_base64") from None
    try:
        check_image(content, "sent", image_limits(settings), formats=(matched.group(1).upper(),))
    except RowError as error:
        raise image_error(error.kind, settings, param) from None
    return content


def image_error(kind: str, settings: Serve, param: str) -> ApiError:
    """The refusal of an image, by the kind of its error."""
    return invalid(image_problem(kind, settings), param, "invalid_image")


def image_problem(kind: str, settings: Serve) -> str:
    """What is wrong with an image, for the client."""
    return REASONS.get(kind, REASONS["undecodable"]).format(**settings.model_dump())


def admitted_prompt(text: str, settings: Serve, param: str) -> str:
    """The text as it is.

    Raises:
        ApiError: it is empty, too long, or holds the image token: a prompt shows as many images as were sent.
    """
    if not text.strip():
        raise invalid("the text beside the image is empty", param)
    if len(text) > settings.max_prompt_chars:
        raise invalid(f"the text is longer than {settings.max_prompt_chars} characters", param, "string_too_long")
    if IMAGE_TOKEN in text:
        raise invalid(f"the text holds {IMAGE_TOKEN!r}, which stands for an image; leave it out", param)
    return text
