"""Reads and decodes untrusted images. Limits are checked before decoding, and every error is a RowError.

Kinds of errors: ``missing``, ``unreadable``, ``too_many_bytes``, ``undecodable``, ``unsupported_format``,
``too_many_pixels``, ``too_small``, ``outside``, ``changed``.

Damaged or oversized metadata are ignored if the pixels are valid. Decoding allocates at most 12 bytes per pixel (20 for
WEBP), in addition to the encoded file.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError

from jsfree.errors import RowError
from jsfree.images.cells import read_cell
from jsfree.images.confinement import check_source_links
from jsfree.images.formats import FORMATS, PREFIX, format_by_content
from jsfree.images.metadata import without_metadata
from jsfree.images.pixels import DAMAGED, upright_rgb
from jsfree.images.ranges import Cell, Part, file_at, parse_address
from jsfree.images.retries import read_error, read_with_retries
from jsfree.run.filesystems import reason

if TYPE_CHECKING:
    from jsfree.config import Source
    from jsfree.schemas import ImageRef

MAX_ASPECT_RATIO = 100
"""Preprocessing scales the short side to a few hundred pixels, so the long side of a thin strip would be huge."""

TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF

Result = TypeVar("Result")
_OPENING = threading.Lock()


class LoadedImage(NamedTuple):
    """A decoded image and the SHA-256 of its encoded file, in hexadecimal."""

    image: Image.Image
    sha256: str


def load_image(image: ImageRef, limits: Source) -> LoadedImage:
    """Read and decode an image.

    Args:
        image: a reference with either ``uri`` or encoded ``bytes``.
        limits: section with ``max_bytes``, ``max_pixels`` and ``min_side``.

    Returns:
        The first frame as an upright RGB image: EXIF orientation applied, transparency composited over white, 16-bit
        levels scaled to 8 bits.

    Raises:
        RowError: the image cannot be used; the module docstring lists the kinds.
    """
    name = _name(image)
    content = image_bytes(image, limits)
    sha256 = hashlib.sha256(content).hexdigest()
    if image["sha256"] not in (None, sha256):
        raise RowError(
            "changed",
            f"image {name} has changed since it was first read (SHA-256 {image['sha256']})",
            "restore it, or redo the round with --restart samples",
        )
    return LoadedImage(_retry_without_metadata(content, lambda encoded: _decode(encoded, name, limits)), sha256)


def image_bytes(image: ImageRef, limits: Source) -> bytes:
    """Read the encoded file of an image.

    Raises:
        RowError: the file is ``missing``, ``unreadable``, ``outside`` its source, or has ``too_many_bytes``.
    """
    check_source_links(image["uri"], limits)
    return _read_bytes(image, _name(image), limits.max_bytes)


def check_image(content: bytes, name: str, limits: Source, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Check the format and size of an encoded image from its header.

    Args:
        name: name of the image, for error messages.

    Returns:
        The opened image; its pixels are not decoded yet.

    Raises:
        RowError: the format is not one of ``formats``, or the size exceeds the limits.
    """
    return _retry_without_metadata(content, lambda encoded: _check(encoded, name, limits, formats))


def _name(image: ImageRef) -> str:
    """Name of an image in error messages."""
    return image["id"] if image["uri"] in (None, image["id"]) else f"{image['id']} ({image['uri']})"


def _read_bytes(image: ImageRef, name: str, max_bytes: int) -> bytes:
    if image["bytes"] is not None:
        content = image["bytes"]
    elif image["uri"]:
        content = _read(image["uri"], name, max_bytes)
    else:
        raise RowError("missing", f"image {name} has neither URI nor bytes", "remove the row")
    if len(content) > max_bytes:
        raise _too_large(name, len(content), max_bytes)
    return content


def _read(uri: str, name: str, max_bytes: int) -> bytes:
    """Read the file, or the part of a file, at ``uri``."""
    try:
        return read_with_retries(uri, lambda: _read_once(uri, name, max_bytes))
    except RowError:
        raise
    except Exception as error:  # filesystems have their own errors, in particular for denied access
        raise read_error(error, name) from error


def _read_once(uri: str, name: str, max_bytes: int) -> bytes:
    part = parse_address(uri)
    if isinstance(part, Cell):
        return _read_cell(part, name)
    return _read_part(part, name, max_bytes) if isinstance(part, Part) else _read_file(uri, name, max_bytes)


def _read_file(uri: str, name: str, max_bytes: int) -> bytes:
    """Read at most ``max_bytes + 1`` bytes of a file, after a check of its size if the filesystem reports it."""
    filesystem, path = file_at(uri)
    size = filesystem.info(path).get("size")
    if size is not None and size > max_bytes:
        raise _too_large(name, size, max_bytes)
    with filesystem.open(path, "rb") as file:
        return bytes(file.read(max_bytes + 1))


def _read_part(part: Part, name: str, max_bytes: int) -> bytes:
    """Read a part of a file with one range request."""
    if part.length > max_bytes:
        raise _too_large(name, part.length, max_bytes)
    if part.length == 0:
        return b""
    filesystem, path = file_at(part.file)
    content = _read_range(filesystem, path, part)
    if len(content) != part.length:
        raise RowError(
            "undecodable",
            f"image {name} is truncated ({len(content)} of {part.length} bytes)",
            f"copy {part.file} again",
        )
    return content


def _read_range(filesystem: Any, path: str, part: Part) -> bytes:
    end = part.offset + part.length
    if "http" not in filesystem.protocol:
        return bytes(filesystem.cat_file(path, start=part.offset, end=end))
    # fsspec's cat_file downloads the whole file if the server ignores ranges.
    with filesystem.open(path, "rb", size=end, cache_type="none") as file:
        file.seek(part.offset)
        return bytes(file.read(part.length))


def _read_cell(cell: Cell, name: str) -> bytes:
    content = read_cell(cell)
    if content is None:
        raise RowError("missing", f"image {name} is an empty cell", "remove the row")
    return content


def _too_large(name: str, size: int, limit: int) -> RowError:
    return RowError(
        "too_many_bytes", f"image {name} has at least {size} bytes, the limit is {limit}", "raise 'max_bytes'"
    )


def _retry_without_metadata(content: bytes, use: Callable[[bytes], Result]) -> Result:
    """Call ``use`` on an encoded image, and again without its metadata if it is undecodable."""
    try:
        return use(content)
    except RowError as error:
        if error.kind != "undecodable":
            raise
        remaining = without_metadata(content)
        if remaining == content:
            raise
    return use(remaining)


def _decode(content: bytes, name: str, limits: Source) -> Image.Image:
    encoded = _check(content, name, limits, FORMATS)
    try:
        encoded.load()
        return upright_rgb(encoded)
    except (Image.DecompressionBombError, *DAMAGED) as error:
        raise RowError("undecodable", f"image {name} is damaged ({_reason(error)})", "replace or remove it") from error


def _check(content: bytes, name: str, limits: Source, formats: tuple[str, ...]) -> Image.Image:
    opened = _open(content, name, formats)
    _check_size(opened.size, name, limits)
    _check_tiles(getattr(opened, "tag_v2", {}), name, limits)
    return opened


def _check_tiles(tags: Mapping[int, Any], name: str, limits: Source) -> None:
    """Refuse large TIFF tiles, which are decoded as a whole even if the image covers a part of them."""
    width, length = tags.get(TILE_WIDTH, 0), tags.get(TILE_LENGTH, 0)
    if isinstance(width, int) and isinstance(length, int) and width * length > limits.max_pixels:
        raise _too_many_pixels(name, f"tiles of {width} x {length}", limits)


def _open(content: bytes, name: str, formats: tuple[str, ...]) -> Image.Image:
    """Read the header, using only the decoders of the allowed formats."""
    try:
        # Pillow warns about large images before our own limits are checked. Warning filters are global to the
        # process, hence the lock; reading a header takes microseconds.
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError as error:
        raise RowError("too_many_pixels", f"image {name} exceeds Pillow's limit of pixels", "scale it down") from error
    except UnidentifiedImageError as error:
        raise _unidentified(content, name, formats) from error
    except DAMAGED as error:
        raise RowError("undecodable", f"image {name} is damaged ({_reason(error)})", "replace or remove it") from error


def _unidentified(content: bytes, name: str, formats: tuple[str, ...]) -> RowError:
    """Distinguish unsupported formats from files that are not images, by their first bytes."""
    Image.init()
    prefix = content[:PREFIX].ljust(PREFIX, b"\0")
    detected = format_by_content(prefix)  # HEIC, for example, for which Pillow has no decoder
    kinds = [] if detected is None or detected in FORMATS else [detected]
    kinds += [
        kind for kind, (_, accept) in sorted(Image.OPEN.items()) if kind not in formats and accept and accept(prefix)
    ]
    if kinds:
        remedy = f"convert it to one of {', '.join(formats)}"
        return RowError("unsupported_format", f"image {name} is {kinds[0]}", remedy)
    what = "is empty" if not content else "is not an image, or is damaged"
    return RowError("undecodable", f"image {name} {what}", "replace or remove it")


def _check_size(size: tuple[int, int], name: str, limits: Source) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise _too_many_pixels(name, f"{width} x {height}", limits)
    min_side = max(limits.min_side, -(-max(size) // MAX_ASPECT_RATIO))
    if min(size) < min_side:
        raise RowError(
            "too_small",
            f"image {name} has {width} x {height} pixels, but its shorter side must have at least {min_side}",
            "remove it",
        )


def _too_many_pixels(name: str, size: str, limits: Source) -> RowError:
    return RowError(
        "too_many_pixels",
        f"image {name} has {size} pixels, the limit is {limits.max_pixels}",
        "scale it down or raise 'max_pixels'",
    )


def _reason(error: BaseException) -> str:
    """Short description of an error."""
    return reason(error)[:200]
