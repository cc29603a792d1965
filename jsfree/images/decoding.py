"""Opens one image without trusting it: limits come before work, and whatever is wrong becomes a RowError.

Kinds: ``missing``, ``unreadable``, ``too_many_bytes``, ``undecodable``, ``unsupported_format``,
``too_many_pixels``, ``too_small``, ``outside``, ``changed``.

Pixels decide whether an image is sound: metadata that is damaged or too large does not cost it. Decoding allocates
at most 20 bytes for each pixel of the limit (12, except for WEBP), in addition to the encoded file.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image, UnidentifiedImageError

from jsfree.errors import RowError
from jsfree.images.cells import read_cell
from jsfree.images.confinement import check_source_links
from jsfree.images.formats import FORMATS, PREFIX, by_content
from jsfree.images.metadata import without_metadata
from jsfree.images.pixels import DAMAGED, upright_rgb
from jsfree.images.ranges import Cell, Part, file_at, part_at
from jsfree.images.retries import read_error, read_with_retries
from jsfree.run.filesystems import reason

if TYPE_CHECKING:
    from jsfree.config import Source
    from jsfree.schemas import ImageRef

# Preprocessing scales the short side to a few hundred pixels: a thin strip would grow without bound there.
LONGEST_TO_SHORTEST = 100

TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF

Result = TypeVar("Result")
_OPENING = threading.Lock()


def load_image(image: ImageRef, limits: Source) -> tuple[Image.Image, str]:
    """Read and decode an image.

    Args:
        image: where it is (``uri``), or its encoded ``bytes``.
        limits: ``max_bytes`` of the file, ``max_pixels`` (width x height) and ``min_side`` in pixels.

    Returns:
        The first frame as an upright RGB image (EXIF orientation applied, transparency over white, 16-bit
        scaled to 8), and the SHA-256 of the encoded file in hexadecimal.

    Raises:
        RowError: the image cannot be used; ``kind`` is one of those in the module's docstring.
    """
    name = _name(image)
    content = image_bytes(image, limits)
    sha256 = hashlib.sha256(content).hexdigest()
    if image["sha256"] not in (None, sha256):
        raise RowError(
            "changed",
            f"image {name} is not the file that was read before (SHA-256 {image['sha256']})",
            "restore it, or redo the round with --restart samples",
        )
    return _by_pixels(content, lambda encoded: _decode(encoded, name, limits)), sha256


def image_bytes(image: ImageRef, limits: Source) -> bytes:
    """The encoded file of an image.

    Raises:
        RowError: it is ``missing``, ``unreadable``, ``outside`` of its source or has ``too_many_bytes``.
    """
    check_source_links(image["uri"], limits)
    return _content(image, _name(image), limits.max_bytes)


def check_image(content: bytes, name: str, limits: Source, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Look at an image's header alone: whether it is of one of ``formats`` and within the limits of its sides.

    Returns:
        The opened image; its pixels are not decoded.

    Raises:
        RowError: the image cannot be used, by what its header says; ``name`` is what its message calls it.
    """
    return _by_pixels(content, lambda encoded: _check(encoded, name, limits, formats))


def _name(image: ImageRef) -> str:
    """What messages call an image."""
    return image["id"] if image["uri"] in (None, image["id"]) else f"{image['id']} ({image['uri']})"


def _content(image: ImageRef, name: str, max_bytes: int) -> bytes:
    if image["bytes"] is not None:
        content = image["bytes"]
    elif image["uri"]:
        content = _read(image["uri"], name, max_bytes)
    else:
        raise RowError("missing", f"image {name} has neither a path nor bytes", "remove the row")
    if len(content) > max_bytes:
        raise _too_large(name, len(content), max_bytes)
    return content


def _read(uri: str, name: str, max_bytes: int) -> bytes:
    """The content of a file, or of the part of one that ``uri`` names."""
    try:
        return read_with_retries(uri, lambda: _read_once(uri, name, max_bytes))
    except RowError:
        raise
    except Exception as error:  # every filesystem has errors of its own, for refused access above all
        raise read_error(error, name) from error


def _read_once(uri: str, name: str, max_bytes: int) -> bytes:
    part = part_at(uri)
    if isinstance(part, Cell):
        return _read_cell(part, name)
    return _read_part(part, name, max_bytes) if isinstance(part, Part) else _read_file(uri, name, max_bytes)


def _read_file(uri: str, name: str, max_bytes: int) -> bytes:
    """At most ``max_bytes + 1`` bytes of a file; its size is asked for first, where the filesystem knows it."""
    filesystem, path = file_at(uri)
    size = filesystem.info(path).get("size")
    if size is not None and size > max_bytes:
        raise _too_large(name, size, max_bytes)
    with filesystem.open(path, "rb") as file:
        return bytes(file.read(max_bytes + 1))


def _read_part(part: Part, name: str, max_bytes: int) -> bytes:
    """Part of a file, by one ranged read."""
    if part.length > max_bytes:
        raise _too_large(name, part.length, max_bytes)
    if part.length == 0:
        return b""
    filesystem, path = file_at(part.file)
    content = _read_range(filesystem, path, part)
    if len(content) != part.length:
        raise RowError(
            "undecodable",
            f"image {name} is cut off ({len(content)} of {part.length} bytes)",
            f"copy {part.file} again",
        )
    return content


def _read_range(filesystem: Any, path: str, part: Part) -> bytes:
    end = part.offset + part.length
    if "http" not in filesystem.protocol:
        return bytes(filesystem.cat_file(path, start=part.offset, end=end))
    # fsspec's cat_file would take the whole file from a server that ignores ranges.
    with filesystem.open(path, "rb", size=end, cache_type="none") as file:
        file.seek(part.offset)
        return bytes(file.read(part.length))


def _read_cell(cell: Cell, name: str) -> bytes:
    """The bytes in a cell of a Parquet table."""
    content = read_cell(cell)
    if content is None:
        raise RowError("missing", f"image {name} is an empty cell", "remove the row")
    return content


def _too_large(name: str, size: int, limit: int) -> RowError:
    return RowError(
        "too_many_bytes", f"image {name} has {size} bytes or more, the limit is {limit}", "raise 'max_bytes'"
    )


def _by_pixels(content: bytes, use: Callable[[bytes], Result]) -> Result:
    """``use(content)``; where that is damaged, the same without its metadata, which may be all that is damaged."""
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
    """Refuse tiles of TIFF that are larger than an image may be: they are decoded whole, whatever the image covers."""
    width, length = tags.get(TILE_WIDTH, 0), tags.get(TILE_LENGTH, 0)
    if isinstance(width, int) and isinstance(length, int) and width * length > limits.max_pixels:
        raise _too_many_pixels(name, f"tiles of {width} x {length}", limits)


def _open(content: bytes, name: str, formats: tuple[str, ...]) -> Image.Image:
    """Read the header alone, by the decoders of the allowed formats alone."""
    try:
        # Pillow warns of large images, and calls damaged ones malformed, before our own limits can speak. The
        # filters belong to the process, hence the lock; reading a header takes microseconds.
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError as error:
        raise RowError("too_many_pixels", f"image {name} has too many pixels for Pillow", "scale it down") from error
    except UnidentifiedImageError as error:
        raise _unidentified(content, name, formats) from error
    except DAMAGED as error:
        raise RowError("undecodable", f"image {name} is damaged ({_reason(error)})", "replace or remove it") from error


def _unidentified(content: bytes, name: str, formats: tuple[str, ...]) -> RowError:
    """Tell a format that is not allowed from a file that is no image, by its first bytes."""
    Image.init()
    prefix = content[:PREFIX].ljust(PREFIX, b"\0")
    known = by_content(prefix)  # HEIC, for which Pillow has no decoder
    if known is not None and known not in FORMATS:
        return RowError("unsupported_format", f"image {name} is {known}", f"convert it to one of {', '.join(formats)}")
    for kind, (_, accept) in sorted(Image.OPEN.items()):
        if kind not in formats and accept is not None and accept(prefix):
            return RowError(
                "unsupported_format", f"image {name} is {kind}", f"convert it to one of {', '.join(formats)}"
            )
    what = "is empty" if not content else "is no image, or damaged"
    return RowError("undecodable", f"image {name} {what}", "replace or remove it")


def _check_size(size: tuple[int, int], name: str, limits: Source) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise _too_many_pixels(name, f"{width} x {height}", limits)
    least = max(limits.min_side, -(-max(size) // LONGEST_TO_SHORTEST))
    if min(size) < least:
        raise RowError(
            "too_small",
            f"image {name} has {width} x {height} pixels, its short side must be {least} at least",
            "remove it",
        )


def _too_many_pixels(name: str, size: str, limits: Source) -> RowError:
    return RowError(
        "too_many_pixels",
        f"image {name} has {size} pixels, the limit is {limits.max_pixels}",
        "scale it down or raise 'max_pixels'",
    )


def _reason(error: BaseException) -> str:
    """The gist of an error."""
    return reason(error)[:200]
