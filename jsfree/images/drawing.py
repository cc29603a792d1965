"""Puts listed images in the order of a hash of (seed, image id), each once, without an object for every image.

Entries come one by one, as listers yield them, and are packed into Arrow arrays with their hashes in numpy: about 50
bytes an image and its id. Where only so many images of either end of the order are needed, only they are kept,
however many are listed.
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
from jsfree.images.listing import Entry, Place, Unusable
from jsfree.run.keyed_order import ticket

CHUNK = 65_536
"""Entries that are packed at once."""
_NO_RANK, _BEYOND_RANKS = b"", b"\xff" * 17
Indices = NDArray[np.int64]
Ranks = NDArray[np.uint64]
"""Hashes, (2, entries): their first and their last 8 bytes as numbers."""


class Failures:
    """Rows of a source that name no usable image, packed; ``kinds`` counts them."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.first: RowError | None = None
        self._waiting: list[dict[str, str]] = []
        self._packed: list[pa.Table] = []

    def __len__(self) -> int:
        return self.kinds.total()

    def add(self, row: Unusable) -> None:
        """Take up a row."""
        self.first = self.first or row.error
        self.kinds[row.error.kind] += 1
        self._waiting.append({"sample_id": row.id, "kind": row.error.kind, "message": str(row.error)})
        if len(self._waiting) == CHUNK:
            self._packed.append(pa.Table.from_pylist(self._waiting))
            self._waiting = []

    def tables(self, stage: str) -> Iterator[pa.Table]:
        """The rows as tables of ``schemas.ERRORS``, ``CHUNK`` rows each but the last."""
        for part in [*self._packed, *([pa.Table.from_pylist(self._waiting)] if self._waiting else [])]:
            named = part.append_column("stage", pa.repeat(stage, len(part)))
            yield named.select(schemas.ERRORS.names).cast(schemas.ERRORS)


class Drawn:
    """Images in the order of a seed.

    Attributes:
        unusable: the rows of the source that name no usable image.
        listed: how many rows of the source name an image, or should.
        repeated: how many of them name an image that an earlier one names; not known (0) if only parts were kept.
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

    def first_listed(self, most: int) -> list[int]:
        """The numbers of the images that were listed first, of which those inside a table lie together."""
        return [int(number) for number in np.argsort(self._order)[:most]]

    def image(self, number: int) -> schemas.ImageRef:
        """The reference to an image, by its number in the order."""
        entry = self._packed[int(self._order[number])]
        name = f"{entry.place.shard}:{entry.id}" if self._is_qualified(number) else entry.id
        return {"id": name, "uri": entry.place.prefix + entry.tail, "bytes": None, "sha256": None}

    def _is_qualified(self, number: int) -> bool:
        return self._qualified is not None and bool(self._qualified[number])


def draw(entries: Iterable[Entry | Unusable], seed: int, first: int | None = None, last: int = 0) -> Drawn:
    """The order of listed images; of several with one id the first, but within one tar file the last.

    Args:
        entries: what a lister yields.
        seed: of the run.
        first, last: how many images of the beginning and the end of the order are needed; all without ``first``.
            If there are more, those between them may be left out.
    """
    packed, unusable, listed = _Packed(), Failures(), 0
    names: list[Entry] = []
    ranks: list[bytes] = []
    low, high = _BEYOND_RANKS, _NO_RANK  # ranks between them are not needed: none so far
    limit = None if first is None else 2 * (first + last) + CHUNK
    for entry in entries:
        listed += 1
        if isinstance(entry, Unusable):
            unusable.add(entry)
            continue
        rank = ticket(seed, entry.id)
        if low < rank < high:
            continue
        names.append(entry)
        ranks.append(rank)
        if len(names) == CHUNK:
            packed.append(names, ranks)
            names, ranks = [], []
            if limit is not None and first is not None and len(packed) > limit:
                low, high = _trim(packed, first, last)
                limit = 2 * max(first + last, len(packed)) + CHUNK
    packed.append(names, ranks)
    return Drawn(packed, unusable, listed)


def _trim(packed: _Packed, first: int, last: int) -> tuple[bytes, bytes]:
    """Drop all but the ends of the order, and repetitions; the ranks between which no image is needed any more."""
    order, _ = _ordered(packed)
    low, high = _BEYOND_RANKS, _NO_RANK
    if len(order) > first + last:
        low = packed.rank(int(order[first - 1])) if first else _NO_RANK
        high = packed.rank(int(order[-last])) if last else _BEYOND_RANKS
        # All images of a rank stay together: they are those of one name in several tar files.
        between = [low < packed.rank(int(index)) < high for index in order]
        order = order[~np.array(between)]
    packed.keep(np.sort(order))
    return low, high


class _Chunk(NamedTuple):
    """Entries; ``tails`` are None where they equal the ids, and ``places`` a number where there is but one."""

    ids: pa.Array
    tails: pa.Array | None
    places: NDArray[np.int32] | int


class _Packed:
    """Entries and their ranks, in the order in which they were listed."""

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = []
        self._starts: list[int] = []
        self._ranks: list[Ranks] = []
        self._places: list[Place] = []
        self._codes: dict[Place, int] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Entry:
        number = bisect_right(self._starts, index) - 1
        chunk, row = self._chunks[number], index - self._starts[number]
        name = chunk.ids[row].as_py()
        tail = name if chunk.tails is None else chunk.tails[row].as_py()
        place = chunk.places if isinstance(chunk.places, int) else chunk.places[row]
        return Entry(name, self._places[place], tail)

    @property
    def has_shards(self) -> bool:
        """Whether the entries are in tar files."""
        return bool(self._places) and self._places[0].shard is not None

    def append(self, entries: list[Entry], ranks: list[bytes]) -> None:
        """Add entries with the hashes that decide their order, 16 bytes each."""
        if not entries:
            return
        same = all(entry.tail == entry.id for entry in entries)
        codes = [self._code(entry.place) for entry in entries]
        places = codes[0] if len(set(codes)) == 1 else np.array(codes, np.int32)
        tails = None if same else pa.array([entry.tail for entry in entries], pa.string())
        self._add(_Chunk(pa.array([entry.id for entry in entries], pa.string()), tails, places))
        self._ranks.append(np.frombuffer(b"".join(ranks), ">u8").astype(np.uint64).reshape(-1, 2).T.copy())

    def _code(self, place: Place) -> int:
        code = self._codes.setdefault(place, len(self._places))
        if code == len(self._places):
            self._places.append(place)
        return code

    def _add(self, chunk: _Chunk) -> None:
        self._chunks.append(chunk)
        self._starts.append(self._length)
        self._length += len(chunk.ids)

    def ranks(self) -> Ranks:
        """The hashes of all entries."""
        whole, start = np.empty((2, self._length), np.uint64), 0
        parts, self._ranks = self._ranks[::-1], [whole]
        while parts:  # each is freed once it is copied
            part = parts.pop()
            whole[:, start : start + part.shape[1]] = part
            start += part.shape[1]
        return whole

    def rank(self, index: int) -> bytes:
        """The hash of an entry; after ``ranks``."""
        (ranks,) = self._ranks
        return bytes(ranks[:, index].astype(">u8").tobytes())

    def forget_ranks(self) -> None:
        """Free the hashes, once the order is known."""
        self._ranks = []

    def keep(self, indices: Indices) -> None:
        """Drop all entries but those at ``indices`` (ascending); after ``ranks``."""
        (ranks,) = self._ranks
        chunks, ends = self._chunks, np.searchsorted(indices, [*self._starts, self._length])
        starts = self._starts
        self._ranks, self._chunks, self._starts, self._length = [ranks[:, indices]], [], [], 0
        for number, chunk in enumerate(chunks):
            rows = indices[ends[number] : ends[number + 1]] - starts[number]
            if len(rows):
                tails = None if chunk.tails is None else chunk.tails.take(pa.array(rows))
                places = chunk.places if isinstance(chunk.places, int) else chunk.places[rows]
                self._add(_Chunk(chunk.ids.take(pa.array(rows)), tails, places))


def _ordered(packed: _Packed) -> tuple[Indices, NDArray[np.bool_] | None]:
    """Distinct entries by rank and id, and which of them share their name with one of another tar file.

    Entries of one rank have one name: a hash of 128 bits tells them apart as well as their names do.
    """
    first, last = packed.ranks()
    order = np.argsort(first, kind="stable")  # of one rank the first listed comes first
    in_order = first[order]
    repeats = np.zeros(len(order), bool)
    np.equal(in_order[1:], in_order[:-1], out=repeats[1:])
    del in_order
    again = np.flatnonzero(repeats)
    if (last[order[again]] != last[order[again - 1]]).any():  # names that share 8 bytes of their hashes
        order = np.lexsort((last, first))
        repeats[again] = last[order[again]] == last[order[again - 1]]
    if packed.has_shards:
        return _ordered_shards(packed, order, repeats)
    return order[~repeats] if len(again) else order, None


def _ordered_shards(
    packed: _Packed, order: Indices, repeats: NDArray[np.bool_]
) -> tuple[Indices, NDArray[np.bool_] | None]:
    """The order of entries in tar files: of one name in one file the last, in several files by the files' names."""
    starts = np.flatnonzero(~repeats)
    ends = np.append(starts[1:], len(order))
    kept, qualified = np.ones(len(order), bool), np.zeros(len(order), bool)
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        entries = ((index, packed[int(index)]) for index in order[start:end])
        by_id = {f"{entry.place.shard}:{entry.id}": index for index, entry in entries}
        chosen = [by_id[name] for name in sorted(by_id)]
        order[start : start + len(chosen)] = chosen
        kept[start + len(chosen) : end] = False
        qualified[start:end] = len(chosen) > 1
    return order[kept], qualified[kept]
