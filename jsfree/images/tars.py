"""Images in WebDataset shards: uncompressed tar files, local or behind any fsspec URI.

Listing reads the headers of the members and no image. What it keeps of an image is the file it is in, its offset
and its length: a worker reads it later with one ranged read, and a run of any size carries addresses, not bytes.
Nothing is unpacked to disk, links and devices are left out, and what lies beside an image (captions, JSON) is never
read: the method is unlabelled.

The standard library reads the headers. The ``webdataset`` package streams whole shards in their own order, while
the images of a run are chosen one by one, by a hash of their ids.
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
from jsfree.images.formats import EXTENSIONS, PREFIX, by_name, is_read
from jsfree.images.listing import Entry, Place, address, explained, files_below, opened, read_ahead
from jsfree.images.ranges import uri_of
from jsfree.run.filesystems import filesystem_of
from jsfree.texts import readable
from jsfree.uris import has_scheme

COMPRESSED_NAMES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MOST_SHARDS = 100_000
LONGEST_HEADER = 2**20
LONGEST_PADDING = 2**20
# Far away, passing over an image costs less than asking anew for the next header.
READ_AHEAD = 4 * 2**20
REMOTE_READERS = 16

_PATTERN = re.compile(r"[*?\[{]")
_GLOB = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
# What tarfile raises on damaged headers, found by fuzzing it; anything else is a bug that should show.
_DAMAGED = (tarfile.TarError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, MemoryError)
_log = logging.getLogger(__name__)


def tar_images(source: Source) -> Iterator[Entry]:
    """The images of a .tar file, of all below a folder, or of those that a glob or brace pattern names.

    An id is the member's name, as the id of an image in a folder is its path. Of a name that several shards use, the
    order of the seed knows no other id, so that a shard more or less moves no other image.

    Raises:
        SourceError: there is no shard or no image; a shard is missing, compressed, damaged or cut off.
    """
    path = str(source.path)
    filesystem, shards = _shards(path)
    found = 0
    for shard, images in _listed(filesystem, shards):
        place = Place(uri_of(address(filesystem, shards[shard])), readable(shard))
        for name, offset, length in images:
            found += 1
            yield Entry(name, place, f"#offset={offset}&length={length}")
    if not found:
        raise SourceError(f"{path} holds no images (looked for {', '.join(EXTENSIONS)})", "correct 'source.path'")


def _listed(filesystem: Any, shards: dict[str, str]) -> Iterator[tuple[str, Iterable[_Member]]]:
    """The images of each shard; those of a store are listed several shards at a time."""
    if isinstance(filesystem, LocalFileSystem):
        yield from ((shard, _images(filesystem, path)) for shard, path in shards.items())
        return
    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        yield from read_ahead(pool, lambda shard: list(_images(filesystem, shards[shard])), shards)


def expanded(pattern: str) -> Iterator[str]:
    """The names that ``{000..123}`` and ``{a,b}`` stand for, as a shell expands them."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for choice in _choices(*match.groups()):
        yield from expanded(pattern[: match.start()] + choice + pattern[match.end() :])


def _choices(first: str | None, last: str | None, names: str | None) -> Iterator[str]:
    if first is None or last is None:
        yield from str(names).split(",")
        return
    padded = first.startswith("0") or last.startswith("0")
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    yield from (f"{number:0{width}d}" for number in range(int(first), int(last) + step, step))


def _shards(path: str) -> tuple[Any, dict[str, str]]:
    """The filesystem, and the path of every shard by its name: from the folder or the pattern's first wildcard on."""
    with explained(path, Exception):
        filesystem, inner = filesystem_of(path)
        # A web server has no folders to ask for: what is called .tar is a file.
        if _is_tar(inner) and filesystem.exists(inner):
            root, found = posixpath.dirname(inner), [inner]
        elif (pattern := _pattern(filesystem, inner)) is not None:
            root, found = pattern[0], _matching(filesystem, *pattern, path)
        else:
            root, found = inner.rstrip("/"), _below(*opened(path))
    compressed = sorted(file for file in found if file.lower().endswith(COMPRESSED_NAMES))
    if compressed:
        raise _compressed(address(filesystem, compressed[0]), "compressed")
    names = {file[len(root) :].lstrip("/"): file for file in sorted(set(found)) if _is_tar(file)}
    if not names:
        raise SourceError(f"{path} names no .tar file", "correct 'source.path'")
    return filesystem, {name.removesuffix(".tar"): file for name, file in names.items()}


def _pattern(filesystem: Any, path: str) -> tuple[str, str] | None:
    """A path's last existing folder and the pattern behind it; None for a path without wildcards.

    Brackets and braces in what exists under this very name mean nothing.
    """
    parts = path.split("/")
    for number, part in enumerate(parts):
        if _PATTERN.search(part) and not filesystem.exists("/".join(parts[: number + 1])):
            return "/".join(parts[:number]), "/".join(parts[number:])
    return None


def _is_tar(path: str) -> bool:
    if has_scheme(path):
        path = path.partition("?")[0]  # a signed web address goes on after the name
    return path.lower().endswith(".tar")


def _below(filesystem: Any, inner: str) -> list[str]:
    if not filesystem.isdir(inner):
        return [inner]
    return [f"{inner.rstrip('/')}/{name}" for name in files_below(filesystem, inner)]


def _matching(filesystem: Any, folder: str, pattern: str, path: str) -> list[str]:
    """Files that a pattern names; those that braces spell out need not exist, and are missed when read."""
    names = list(islice(expanded(pattern), MOST_SHARDS + 1))
    if len(names) > MOST_SHARDS:
        raise SourceError(f"{path} names more than {MOST_SHARDS} shards", "correct the braces of 'source.path'")
    plain = [f"{folder}/{name}" for name in names if not _GLOB.search(name)]
    wild = [name for name in names if _GLOB.search(name)]
    return plain + [file for name in wild for file in _globbed(filesystem, folder, name)]


def _globbed(filesystem: Any, folder: str, pattern: str) -> Iterator[str]:
    """Files below ``folder`` that match; unlike fsspec's ``glob``, the folder's own name is taken literally."""
    matches = re.compile(glob_translate(pattern)).match
    depth = None if "**" in pattern else pattern.count("/") + 1
    for found in filesystem.find(folder, maxdepth=depth):
        if matches(str(found)[len(folder) :].lstrip("/")):
            yield str(found)


class _Member(NamedTuple):
    """An image in a tar file: its name, and where its bytes are."""

    name: str
    offset: int
    length: int


def _images(filesystem: Any, path: str) -> Iterator[_Member]:
    """Where the images of one shard are; of several with one name the last counts, as if it had been unpacked."""
    uri = address(filesystem, path)
    left_out = 0
    with explained(uri), _opened(filesystem, path, uri) as file:
        for member in _members(file, uri):
            name = _member_name(member.name)
            kind = "other" if _hidden(name) else by_name(name)
            if kind == "other":
                continue
            if not member.isreg() or member.issparse():
                left_out += kind == "image" and not member.isdir()
            elif kind == "image" or _looks_like_image(file, member):
                yield _Member(name, member.offset_data, member.size)
    if left_out:
        _log.warning("%s: %d images are links, devices or sparse files and are left out", uri, left_out)


def _looks_like_image(file: Any, member: tarfile.TarInfo) -> bool:
    """Whether a member without a known extension begins as an image does; tarfile seeks anew for the next one."""
    file.seek(member.offset_data)
    return is_read(file.read(min(PREFIX, member.size)))


def _opened(filesystem: Any, path: str, uri: str) -> Any:
    try:
        with explained(uri, Exception):
            return filesystem.open(path, "rb", block_size=READ_AHEAD)
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise SourceError(f"{uri} does not exist", "restore the shard or correct 'source.path'") from error
        raise


def _member_name(name: str) -> str:
    """A member's name as text that tables can hold, without a leading ``./``."""
    return posixpath.normpath(readable(name)) if name else name


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in name.split("/"))


class _Headers:
    """A file of which only headers are read: a damaged or hostile one cannot ask for more memory than they take."""

    def __init__(self, file: Any, uri: str) -> None:
        self.file = file
        self.uri = uri

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        with explained(self.uri, Exception):
            return bytes(self.file.read(size))

    def seek(self, position: int) -> int:
        if position < 0:
            raise tarfile.ReadError("a header before the file's begin")
        return int(self.file.seek(position))

    def tell(self) -> int:
        return int(self.file.tell())


def _members(file: Any, uri: str) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file, in order; the file must be whole and end as tar files do."""
    headers = _Headers(file, uri)
    _refuse_compressed(headers)
    end = 0
    try:
        with tarfile.open(fileobj=cast(IO[bytes], headers), mode="r:") as tar:
            kept: list[tarfile.TarInfo] = getattr(tar, "members", [])
            while (member := tar.next()) is not None:
                kept.clear()  # tarfile would hold on to them all
                if member.size < 0 or member.offset_data <= end:
                    raise tarfile.ReadError(f"the header at byte {member.offset} points back")
                end = member.offset_data
                yield member
            _check_end(headers, tar.offset)
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{uri} is no whole tar file ({reason})", "copy or pack it again, or remove it") from error


def _check_end(headers: _Headers, position: int) -> None:
    """tarfile stops without a word at a damaged header, at the end of a cut file, and between two joined ones."""
    headers.seek(position)
    mark = headers.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"cut off at byte {position + len(mark)}, without the mark that ends a tar file")
    if any(mark):
        raise tarfile.ReadError(f"damaged header at byte {position}")
    padding = headers.read(LONGEST_PADDING)
    if any(padding) or len(padding) == LONGEST_PADDING:
        raise tarfile.ReadError(f"more data after its end at byte {position}: several tar files in one")


def _refuse_compressed(headers: _Headers) -> None:
    start = headers.read(8)
    headers.seek(0)
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise _compressed(headers.uri, f"compressed with {name}")


def _compressed(uri: str, how: str) -> SourceError:
    return SourceError(
        f"{uri} is {how}, and nothing in it can be read without all before it",
        "uncompress it (gunzip, xz -d, zstd -d): images hardly get smaller by compression",
    )
