"""What may reach a model: images as data URLs of three formats within limits, and text without image tokens.

An image is looked at in this order, so that nothing large is worked on before it is allowed: address, declared
format, length of the base64, length of the file, true format, pixels. Its pixels are decoded later, by the
replica, within the same limits. The declared format need not be the true one, as long as both are allowed: clients
name files by their extensions.
"""

from __future__ import annotations

from jsfree.config import Serve, Source
from jsfree.errors import RowError
from jsfree.images.decoding import check_image
from serve.http import data_urls
from serve.http.errors import ApiError, invalid

FORMATS = ("PNG", "JPEG", "WEBP")
MEDIA_TYPES = {"image/png", "image/x-png", "image/jpeg", "image/jpg", "image/pjpeg", "image/webp"}
IMAGE_TOKEN = "<image>"
REASONS = {
    "undecodable": "the image is damaged, or is none of png, jpeg and webp",
    "unsupported_format": "the image is none of png, jpeg and webp; convert it to one of them",
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
        ApiError: it is no data URL of an allowed format, is damaged, or exceeds a limit.
    """
    given = data_urls.parse(url)
    if given is None or given.media_type not in MEDIA_TYPES:
        message = "give the image as a data URL: data:image/png;base64,... (png, jpeg or webp); no address is fetched"
        raise invalid(message, param, "invalid_image_url")
    try:
        content = given.content(settings.max_image_bytes)
    except data_urls.TooLongError:
        raise image_error("too_many_bytes", settings, param) from None
    except ValueError:
        raise invalid("the image's base64 is damaged", param, "invalid_base64") from None
    try:
        check_image(content, "sent", image_limits(settings), FORMATS)
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
