"""Sorts the distinct images of a listing by a hash of (seed, image id), without an object per image.

Entries are packed into Arrow arrays and their hashes into numpy arrays, which takes about 50 bytes per image plus its
id. If only the first and last images of the order are needed, the others are dropped while listing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jsfree import schemas
from jsfree.errors import RowError
from jsfree.images.listing import Container, Entry, Unusable
from jsfree.run.keyed_order import order_key

CHUNK = 65_536
"""Number of entries per Arrow array."""
_NO_RANK, _BEYOND_RANKS = b"", b"\xff" * 17
Indices = NDArray[np.int64]
Ranks = NDArray[np.uint64]
"""Hashes as an array (2, entries): their first and last 8 bytes as integers."""


class Failures:
    """The rows of a source without a usable image, packed; ``kinds`` counts them by kind of error."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.first: RowError | None = None
        self._waiting: list[dict[str, str]] = []
        self._packed: list[pa.Table] = []

    def __len__(self) -> int:
        return self.kinds.total()

    def add(self, row: Unusable) -> None:
        """Append a row."""
        self.first = self.first or row.error
        self.kinds[row.error.kind] += 1
        self._waiting.append({"sample_id": row.id, "kind": row.error.kind, "message": str(row.error)})
        if len(self._waiting) == CHUNK:
            self._packed.append(pa.Table.from_pylist(self._waiting))
            self._waiting = []

    def tables(self, stage: str) -> Iterator[pa.Table]:
        """Yield tables of ``schemas.ERRORS`` with ``CHUNK`` rows each, the last one with fewer."""
        for part in [*self._packed, *([pa.Table.from_pylist(self._waiting)] if self._waiting else [])]:
            with_stage = part.append_column("stage", pa.repeat(stage, len(part)))
            yield with_stage.select(schemas.ERRORS.names).cast(schemas.ERRORS)


class DrawnImages:
    """The distinct images of a source, sorted by their hashes.

    Attributes:
        unusable: rows without a usable image.
        listed: number of rows that refer to an image, or should.
        repeated: number of rows whose image occurs in an earlier row; 0 (unknown) if some images were dropped.
    """

    def __init__(self, packed: _Packed, unusable: Failures, listed: int) -> None:
        self._packed = packed
        self._order, self._qualified = _ordered(packed)
        packed.forget_ranks()
        self.unusable = unusable
        self.listed = listed
        self.repeated = len(packed) - len(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def first_listed(self, count: int) -> list[int]:
        """Numbers of the ``count`` images that were listed first."""
        return [int(number) for number in np.argsort(self._order)[:count]]

    def image(self, number: int) -> schemas.ImageRef:
        """Create the reference to an image from its number in the order."""
        entry = self._packed[int(self._order[number])]
        image_id = f"{entry.container.shard}:{entry.id}" if self._is_qualified(number) else entry.id
        return {"id": image_id, "uri": entry.container.prefix + entry.tail, "bytes": None, "sha256": None}

    def _is_qualified(self, number: int) -> bool:
        return self._qualified is not None and bool(self._qualified[number])


def draw(entries: Iterable[Entry | Unusable], seed: int, first: int | None = None, last: int = 0) -> DrawnImages:
    """Sort listed images by their hashes.

    Of several entries with one id, the first is used; within one tar file, the last.

    Args:
        entries: output of a lister.
        seed: seed of the run.
        first, last: number of images needed at the start and the end of the order; images between them may be dropped.
            If ``first`` is None, all images are kept.
    """
    packed, unusable, listed = _Packed(), Failures(), 0
    pending: list[Entry] = []
    ranks: list[bytes] = []
    low, high = _BEYOND_RANKS, _NO_RANK  # entries with ranks between them are dropped: none so far
    limit = None if first is None else 2 * (first + last) + CHUNK
    for entry in entries:
        listed += 1
        if isinstance(entry, Unusable):
            unusable.add(entry)
            continue
        rank = order_key(seed, entry.id)
        if low < rank < high:
            continue
        pending.append(entry)
        ranks.append(rank)
        if len(pending) == CHUNK:
            packed.append(pending, ranks)
            pending, ranks = [], []
            if limit is not None and first is not None and len(packed) > limit:
                low, high = _trim(packed, first, last)
                limit = 2 * max(first + last, len(packed)) + CHUNK
    packed.append(pending, ranks)
    return DrawnImages(packed, unusable, listed)


def _trim(packed: _Packed, first: int, last: int) -> tuple[bytes, bytes]:
    """Drop repeated entries and those between the ends of the order.

    Returns:
        The ranks between which further entries can be dropped.
    """
    order, _ = _ordered(packed)
    low, high = _BEYOND_RANKS, _NO_RANK
    if len(order) > first + last:
        low = packed.rank(int(order[first - 1])) if first else _NO_RANK
        high = packed.rank(int(order[-last])) if last else _BEYOND_RANKS
        # Images of equal rank, which have one id in several tar files, are kept together.
        between = [low < packed.rank(int(index)) < high for index in order]
        order = order[~np.array(between)]
    packed.keep(np.sort(order))
    return low, high


class _Chunk(NamedTuple):
    """Packed entries.

    ``tails`` is None if all tails equal the ids; ``containers`` is an integer if all entries have the same one.
    """

    ids: pa.Array
    tails: pa.Array | None
    containers: NDArray[np.int32] | int


class _Packed:
    """Entries and their ranks, in the order of the listing."""

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = []
        self._starts: list[int] = []
        self._ranks: list[Ranks] = []
        self._containers: list[Container] = []
        self._codes: dict[Container, int] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Entry:
        number = bisect_right(self._starts, index) - 1
        chunk, row = self._chunks[number], index - self._starts[number]
        image_id = chunk.ids[row].as_py()
        tail = image_id if chunk.tails is None else chunk.tails[row].as_py()
        code = chunk.containers if isinstance(chunk.containers, int) else chunk.containers[row]
        return Entry(image_id, self._containers[code], tail)

    @property
    def has_shards(self) -> bool:
        """Whether the entries are in tar files."""
        return bool(self._containers) and self._containers[0].shard is not None

    def append(self, entries: list[Entry], ranks: list[bytes]) -> None:
        """Append entries with their ranks, 16 bytes each."""
        if not entries:
            return
        are_ids = all(entry.tail == entry.id for entry in entries)
        codes = [self._code(entry.container) for entry in entries]
        containers = codes[0] if len(set(codes)) == 1 else np.array(codes, np.int32)
        tails = None if are_ids else pa.array([entry.tail for entry in entries], pa.string())
        self._append_chunk(_Chunk(pa.array([entry.id for entry in entries], pa.string()), tails, containers))
        self._ranks.append(np.frombuffer(b"".join(ranks), ">u8").astype(np.uint64).reshape(-1, 2).T.copy())

    def _code(self, container: Container) -> int:
        code = self._codes.setdefault(container, len(self._containers))
        if code == len(self._containers):
            self._containers.append(container)
        return code

    def _append_chunk(self, chunk: _Chunk) -> None:
        self._chunks.append(chunk)
        self._starts.append(self._length)
        self._length += len(chunk.ids)

    def ranks(self) -> Ranks:
        """Return the ranks of all entries, concatenated into one array."""
        whole, start = np.empty((2, self._length), np.uint64), 0
        parts, self._ranks = self._ranks[::-1], [whole]
        while parts:  # free each part after copying it
            part = parts.pop()
            whole[:, start : start + part.shape[1]] = part
            start += part.shape[1]
        return whole

    def rank(self, index: int) -> bytes:
        """Return the rank of an entry. Requires a call of ``ranks`` before."""
        (ranks,) = self._ranks
        return bytes(ranks[:, index].astype(">u8").tobytes())

    def forget_ranks(self) -> None:
        """Free the ranks."""
        self._ranks = []

    def keep(self, indices: Indices) -> None:
        """Drop all entries except those at ``indices`` (ascending). Requires a call of ``ranks`` before."""
        (ranks,) = self._ranks
        chunks, ends = self._chunks, np.searchsorted(indices, [*self._starts, self._length])
        starts = self._starts
        self._ranks, self._chunks, self._starts, self._length = [ranks[:, indices]], [], [], 0
        for number, chunk in enumerate(chunks):
            rows = indices[ends[number] : ends[number + 1]] - starts[number]
            if len(rows):
                tails = None if chunk.tails is None else chunk.tails.take(pa.array(rows))
                codes = chunk.containers
                containers = codes if isinstance(codes, int) else codes[rows]
                self._append_chunk(_Chunk(chunk.ids.take(pa.array(rows)), tails, containers))


def _ordered(packed: _Packed) -> tuple[Indices, NDArray[np.bool_] | None]:
    """Sort the distinct entries.

    Entries of equal rank are taken to have the same id, because hashes of 128 bits do not collide.

    Returns:
        Indices of the entries in order, and for tar files a mask of those whose id occurs in several files.
    """
    first, last = packed.ranks()
    order = np.argsort(first, kind="stable")  # entries of equal rank stay in the order of the listing
    in_order = first[order]
    repeats = np.zeros(len(order), bool)
    np.equal(in_order[1:], in_order[:-1], out=repeats[1:])
    del in_order
    again = np.flatnonzero(repeats)
    if (last[order[again]] != last[order[again - 1]]).any():  # ids whose hashes share their first 8 bytes
        order = np.lexsort((last, first))
        repeats[again] = last[order[again]] == last[order[again - 1]]
    if packed.has_shards:
        return _ordered_shards(packed, order, repeats)
    return order[~repeats] if len(again) else order, None


def _ordered_shards(
    packed: _Packed, order: Indices, repeats: NDArray[np.bool_]
) -> tuple[Indices, NDArray[np.bool_] | None]:
    """Sort entries of tar files with equal ids by file name, and keep the last of each file."""
    starts = np.flatnonzero(~repeats)
    ends = np.append(starts[1:], len(order))
    kept, qualified = np.ones(len(order), bool), np.zeros(len(order), bool)
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        entries = ((index, packed[int(index)]) for index in order[start:end])
        by_id = {f"{entry.container.shard}:{entry.id}": index for index, entry in entries}
        chosen = [by_id[name] for name in sorted(by_id)]
        order[start : start + len(chosen)] = chosen
        kept[start + len(chosen) : end] = False
        qualified[start:end] = len(chosen) > 1
    return order[kept], qualified[kept]
