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
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import IO, Any, cast

from fsspec.implementations.local import LocalFileSystem

from jsfree.config import Source
from jsfree.errors import SourceError
from jsfree.filesystems import filesystem_of
from jsfree.images.listing import EXTENSIONS, Candidate, address, explained, files_below, opened
from jsfree.images.ranges import Part

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


def tar_images(source: Source) -> Iterable[Candidate]:
    """The images of a .tar file, of all below a folder, or of those that a glob or brace pattern names.

    An id is the member's name, as the id of an image in a folder is its path. A name that several shards use is
    preceded by the shard's, but drawn by the name alone, so that a shard more or less moves no other image.

    Raises:
        SourceError: there is no shard or no image; a shard is missing, compressed, damaged or cut off.
    """
    path = str(source.path)
    filesystem, shards = _shards(path)
    readers = 1 if isinstance(filesystem, LocalFileSystem) else REMOTE_READERS
    with ThreadPoolExecutor(readers) as pool:
        listed = list(pool.map(lambda shard: _images(filesystem, shard), shards.values()))
    uses = Counter(name for images in listed for name in images)
    if not uses:
        raise SourceError(f"{path} holds no images (looked for {', '.join(EXTENSIONS)}); correct 'source.path'")
    for shard, images in zip(shards, listed, strict=True):
        for name, part in images.items():
            yield Candidate(f"{shard}:{name}" if uses[name] > 1 else name, part.uri, key=name)


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
        filesystem, inner = filesystem_of(os.path.expanduser(path))
        # A web server has no folders to ask for: what is called .tar is a file.
        if _is_tar(inner) and filesystem.exists(inner):
            root, found = posixpath.dirname(inner), [inner]
        elif _PATTERN.search(inner) and not filesystem.isdir(inner):
            root, found = posixpath.dirname(_PATTERN.split(inner, maxsplit=1)[0]), _matching(filesystem, inner, path)
        else:
            root, found = inner.rstrip("/"), _below(*opened(path))
    compressed = sorted(file for file in found if file.lower().endswith(COMPRESSED_NAMES))
    if compressed:
        raise _compressed(address(filesystem, compressed[0]), "compressed")
    names = {file[len(root) :].lstrip("/"): file for file in sorted(set(found)) if _is_tar(file)}
    if not names:
        raise SourceError(f"{path} names no .tar file; correct 'source.path'")
    return filesystem, {name.removesuffix(".tar"): file for name, file in names.items()}


def _is_tar(path: str) -> bool:
    return path.partition("?")[0].lower().endswith(".tar")  # a signed web address goes on after the name


def _below(filesystem: Any, inner: str) -> list[str]:
    if not filesystem.isdir(inner):
        return [inner]
    return [f"{inner.rstrip('/')}/{name}" for name in files_below(filesystem, inner)]


def _matching(filesystem: Any, inner: str, path: str) -> list[str]:
    """Files that a pattern names; those that braces spell out need not be there, and are missed when read."""
    names = list(islice(expanded(inner), MOST_SHARDS + 1))
    if len(names) > MOST_SHARDS:
        raise SourceError(f"{path} names more than {MOST_SHARDS} shards; correct the braces of 'source.path'")
    return [
        file for name in names for file in ([str(f) for f in filesystem.glob(name)] if _GLOB.search(name) else [name])
    ]


def _images(filesystem: Any, path: str) -> dict[str, Part]:
    """Where the images of one shard are, by name; of several with one name the last, as if it had been unpacked."""
    uri = address(filesystem, path)
    images: dict[str, Part] = {}
    left_out = 0
    with explained(uri), _opened(filesystem, path, uri) as file:
        for member in _members(file, uri):
            name = _readable(member.name)
            if not name.lower().endswith(EXTENSIONS) or _hidden(name):
                continue
            if member.isreg() and not member.issparse():
                images[name] = Part(uri, member.offset_data, member.size)
            else:
                left_out += not member.isdir()
    if left_out:
        _log.warning("%s: %d images are links, devices or sparse files and are left out", uri, left_out)
    return images


def _opened(filesystem: Any, path: str, uri: str) -> Any:
    try:
        with explained(uri, Exception):
            return filesystem.open(path, "rb", block_size=READ_AHEAD)
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise SourceError(f"{uri} does not exist; restore the shard or correct 'source.path'") from error
        raise


def _readable(name: str) -> str:
    """A member's name as text that tables can hold, without a leading ``./``."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return posixpath.normpath(text) if text else text


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
        raise SourceError(f"{uri} is no whole tar file ({reason}); copy or pack it again, or remove it") from error


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
        f"{uri} is {how}, and nothing in it can be read without all before it; uncompress it"
        " (gunzip, xz -d, zstd -d): images hardly get smaller by compression"
    )
