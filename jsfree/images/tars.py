"""Lists the images in WebDataset shards: local or remote uncompressed tar files.

Listing reads only the headers of the members and stores the file, offset and length of each image. Workers read the
image later with one range request. Nothing is unpacked to disk; links and devices are ignored, and so are captions and
JSON files, because the method is unlabelled.

The headers are read with the standard library. The ``webdataset`` package streams whole shards in their own order,
whereas jsfree selects individual images by a hash of their ids.
"""

from __future__ import annotations

import logging
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import IO, Any, NamedTuple, cast

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from jsfree.config import Source
from jsfree.errors import SourceError
from jsfree.images.formats import EXTENSIONS, PREFIX, is_supported, kind_by_name
from jsfree.images.listing import (
    Container,
    Entry,
    absolute_uri,
    files_below,
    open_path,
    read_ahead,
    reported_as_source_error,
)
from jsfree.images.ranges import uri_of
from jsfree.run.filesystems import filesystem_of
from jsfree.texts import readable
from jsfree.uris import has_scheme

COMPRESSED_NAMES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MAX_SHARDS = 100_000
MAX_HEADER_BYTES = 2**20
MAX_PADDING_BYTES = 2**20
# On remote filesystems, reading past an image is faster than a new request for the next header.
READ_AHEAD = 4 * 2**20
REMOTE_READERS = 16

_PATTERN = re.compile(r"[*?\[{]")
_GLOB = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
# Exceptions of tarfile on damaged headers, found by fuzzing. Any other exception is a bug and is not caught.
_DAMAGED = (tarfile.TarError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, MemoryError)
_log = logging.getLogger(__name__)


def tar_images(source: Source) -> Iterator[Entry]:
    """List the images of a tar file, of all tar files below a folder, or of those that match a glob or brace pattern.

    The id of an image is its member name. The order of images depends on it alone, even if several shards contain the
    same name, so adding or removing a shard does not move other images.

    Raises:
        SourceError: there is no shard or no image, or a shard is missing, compressed, damaged or truncated.
    """
    path = str(source.path)
    filesystem, shards = _shards(path)
    count = 0
    for shard, images in _listed(filesystem, shards):
        container = Container(uri_of(absolute_uri(filesystem, shards[shard])), readable(shard))
        for name, offset, length in images:
            count += 1
            yield Entry(name, container, f"#offset={offset}&length={length}")
    if not count:
        raise SourceError(f"{path} has no images (extensions: {', '.join(EXTENSIONS)})", "correct 'source.path'")


def _listed(filesystem: Any, shards: dict[str, str]) -> Iterator[tuple[str, Iterable[_Member]]]:
    """List the images of each shard; remote shards are listed concurrently."""
    if isinstance(filesystem, LocalFileSystem):
        yield from ((shard, _images(filesystem, path)) for shard, path in shards.items())
        return
    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        yield from read_ahead(pool, lambda shard: list(_images(filesystem, shards[shard])), shards)


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand ``{000..123}`` and ``{a,b}`` as a shell does."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for choice in _choices(*match.groups()):
        yield from expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def _choices(first: str | None, last: str | None, names: str | None) -> Iterator[str]:
    if first is None or last is None:
        yield from str(names).split(",")
        return
    padded = first.startswith("0") or last.startswith("0")
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    yield from (f"{number:0{width}d}" for number in range(int(first), int(last) + step, step))


def _shards(path: str) -> tuple[Any, dict[str, str]]:
    """Return the filesystem and the path of each shard by name, relative to the folder before the first wildcard."""
    with reported_as_source_error(path, Exception):
        filesystem, inner = filesystem_of(path)
        # Web servers cannot list folders, so a name that ends with .tar is taken to be a file.
        if _is_tar(inner) and filesystem.exists(inner):
            root, found = posixpath.dirname(inner), [inner]
        elif (pattern := _pattern(filesystem, inner)) is not None:
            root, found = pattern[0], _matching(filesystem, *pattern, path)
        else:
            root, found = inner.rstrip("/"), _below(*open_path(path))
    compressed = sorted(file for file in found if file.lower().endswith(COMPRESSED_NAMES))
    if compressed:
        raise _compressed(absolute_uri(filesystem, compressed[0]), "compressed")
    names = {file[len(root) :].lstrip("/"): file for file in sorted(set(found)) if _is_tar(file)}
    if not names:
        raise SourceError(f"{path} matches no .tar file", "correct 'source.path'")
    return filesystem, {name.removesuffix(".tar"): file for name, file in names.items()}


def _pattern(filesystem: Any, path: str) -> tuple[str, str] | None:
    """Split a path into its last existing folder and a pattern; None for a path without wildcards.

    Brackets and braces in the name of an existing file or folder are literal.
    """
    parts = path.split("/")
    for number, part in enumerate(parts):
        if _PATTERN.search(part) and not filesystem.exists("/".join(parts[: number + 1])):
            return "/".join(parts[:number]), "/".join(parts[number:])
    return None


def _is_tar(path: str) -> bool:
    if has_scheme(path):
        path = path.partition("?")[0]  # signed URLs have a query string
    return path.lower().endswith(".tar")


def _below(filesystem: Any, inner: str) -> list[str]:
    if not filesystem.isdir(inner):
        return [inner]
    return [f"{inner.rstrip('/')}/{name}" for name in files_below(filesystem, inner)]


def _matching(filesystem: Any, folder: str, pattern: str, path: str) -> list[str]:
    """List the files that match a pattern; those in braces may be missing, which is an error when they are read."""
    names = list(islice(expand_braces(pattern), MAX_SHARDS + 1))
    if len(names) > MAX_SHARDS:
        raise SourceError(f"{path} matches more than {MAX_SHARDS} shards", "correct the braces of 'source.path'")
    plain = [f"{folder}/{name}" for name in names if not _GLOB.search(name)]
    wild = [name for name in names if _GLOB.search(name)]
    return plain + [file for name in wild for file in _globbed(filesystem, folder, name)]


def _globbed(filesystem: Any, folder: str, pattern: str) -> Iterator[str]:
    """List the matching files below ``folder``, whose own name is literal, unlike in fsspec's ``glob``."""
    matches = re.compile(glob_translate(pattern)).match
    depth = None if "**" in pattern else pattern.count("/") + 1
    for found in filesystem.find(folder, maxdepth=depth):
        if matches(str(found)[len(folder) :].lstrip("/")):
            yield str(found)


class _Member(NamedTuple):
    """An image in a tar file."""

    name: str
    offset: int
    length: int


def _images(filesystem: Any, path: str) -> Iterator[_Member]:
    """List the images of a shard."""
    uri = absolute_uri(filesystem, path)
    ignored = 0
    with reported_as_source_error(uri), _open(filesystem, path, uri) as file:
        for member in _members(file, uri):
            name = _member_name(member.name)
            kind = "other" if _is_hidden(name) else kind_by_name(name)
            if kind == "other":
                continue
            if not member.isreg() or member.issparse():
                ignored += kind == "image" and not member.isdir()
            elif kind == "image" or _starts_like_image(file, member):
                yield _Member(name, member.offset_data, member.size)
    if ignored:
        _log.warning("%s: ignoring %d images that are links, devices or sparse files", uri, ignored)


def _starts_like_image(file: Any, member: tarfile.TarInfo) -> bool:
    """Whether the first bytes of a member are those of an image. tarfile seeks to the next header afterwards."""
    file.seek(member.offset_data)
    return is_supported(file.read(min(PREFIX, member.size)))


def _open(filesystem: Any, path: str, uri: str) -> Any:
    try:
        with reported_as_source_error(uri, Exception):
            return filesystem.open(path, "rb", block_size=READ_AHEAD)
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise SourceError(f"{uri} does not exist", "restore the shard or correct 'source.path'") from error
        raise


def _member_name(name: str) -> str:
    """Normalize the name of a member to valid UTF-8 without a leading ``./``."""
    return posixpath.normpath(readable(name)) if name else name


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in name.split("/"))


class _Headers:
    """A file object that limits the size of reads, so that a damaged or malicious file cannot exhaust memory."""

    def __init__(self, file: Any, uri: str) -> None:
        self.file = file
        self.uri = uri

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        with reported_as_source_error(self.uri, Exception):
            return bytes(self.file.read(size))

    def seek(self, position: int) -> int:
        if position < 0:
            raise tarfile.ReadError("a header before the start of the file")
        return int(self.file.seek(position))

    def tell(self) -> int:
        return int(self.file.tell())


def _members(file: Any, uri: str) -> Iterator[tarfile.TarInfo]:
    """Iterate over the members of a tar file, and check that it is complete."""
    headers = _Headers(file, uri)
    _refuse_compressed(headers)
    end = 0
    try:
        with tarfile.open(fileobj=cast(IO[bytes], headers), mode="r:") as tar:
            kept: list[tarfile.TarInfo] = getattr(tar, "members", [])
            while (member := tar.next()) is not None:
                kept.clear()  # tarfile would keep all members in memory
                if member.size < 0 or member.offset_data <= end:
                    raise tarfile.ReadError(f"the header at byte {member.offset} points backwards")
                end = member.offset_data
                yield member
            _check_end(headers, tar.offset)
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{uri} is not a complete tar file ({reason})", "copy it again, or remove it") from error


def _check_end(headers: _Headers, position: int) -> None:
    """Check the end marker: tarfile stops silently at a damaged header, a truncation or a second archive."""
    headers.seek(position)
    mark = headers.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"truncated at byte {position + len(mark)}, without an end marker")
    if any(mark):
        raise tarfile.ReadError(f"damaged header at byte {position}")
    padding = headers.read(MAX_PADDING_BYTES)
    if any(padding) or len(padding) == MAX_PADDING_BYTES:
        raise tarfile.ReadError(f"data after the end marker at byte {position}: several concatenated tar files")


def _refuse_compressed(headers: _Headers) -> None:
    start = headers.read(8)
    headers.seek(0)
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise _compressed(headers.uri, f"compressed with {name}")


def _compressed(uri: str, how: str) -> SourceError:
    return SourceError(
        f"{uri} is {how}, so single images cannot be read from it",
        "decompress it (gunzip, xz -d, zstd -d); compression hardly reduces the size of images",
    )
