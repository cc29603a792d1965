"""The selected pairs as training reads them: an index of them in memory, whole pairs only when a batch needs them."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jsfree import schemas
from jsfree.dpo.batching import length_of, require_context
from jsfree.models.loading import Captioner
from jsfree.run.folder import READERS, Folder, shard_name
from jsfree.run.streaming import read_group, scan
from jsfree.schemas import SelectedPair

READ = ("sample_id", "image", "prompt", "chosen.token_ids", "rejected.token_ids")
"""What training reads of a pair."""
INDEXED = ("sample_id", "image.sha256", "prompt", "chosen.token_ids", "rejected.token_ids")
"""What the index is made of: no image."""
CACHED_GROUPS = 8
"""Row groups that a table keeps in memory; selection writes groups of at most 4 MiB."""
INDEXED_AT_ONCE = 512


class Pairs(Protocol):
    """Selected pairs by their positions: a list, or a ``PairTable``."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> SelectedPair: ...

    def __iter__(self) -> Iterator[SelectedPair]: ...


class PairTable:
    """The selected pairs of a round, read from their shards when they are asked for; of any thread.

    A pair has the columns ``READ`` alone: nothing of its sentences and scores.
    """

    def __init__(self, folder: Folder) -> None:
        """Read the footers of the shards in ``folder``.

        Raises:
            StorageError: a shard cannot be read.
        """
        self._folder = folder
        shards = folder.shards()
        with ThreadPoolExecutor(READERS) as readers:
            sizes = list(readers.map(self._group_sizes, shards))
        self._groups = [(shard, group) for shard, rows in zip(shards, sizes, strict=True) for group in range(len(rows))]
        self._ends = np.cumsum([row for rows in sizes for row in rows], dtype=np.int64)
        self._group = lru_cache(CACHED_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, position: int, /) -> SelectedPair:
        if not 0 <= position < len(self):
            raise IndexError(f"pair {position} of {len(self)}")
        at = int(np.searchsorted(self._ends, position, side="right"))
        group = self._group(at)
        rows = group.slice(group.num_rows - (int(self._ends[at]) - position), 1).to_pylist()
        return cast(SelectedPair, rows[0])

    def __iter__(self) -> Iterator[SelectedPair]:
        return self.scan(READ)

    def scan(self, columns: Sequence[str]) -> Iterator[SelectedPair]:
        """All pairs in order, with some of their columns only, such as ``chosen.token_ids``."""
        for table in scan(self._folder, schemas.SELECTED, columns):
            yield from table.to_pylist()

    def _group_sizes(self, shard: int) -> list[int]:
        with self._folder.open(shard_name(shard)) as file:
            metadata = pq.read_metadata(file)
            return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def _read_group(self, at: int) -> pa.Table:
        shard, group = self._groups[at]
        return read_group(self._folder, shard, group, schemas.SELECTED, READ)


@dataclass(frozen=True)
class Subset:
    """Some of the pairs, by their ``positions`` in ``table``."""

    table: Pairs
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, at: int, /) -> SelectedPair:
        return self.table[int(self.positions[at])]

    def __iter__(self) -> Iterator[SelectedPair]:
        return (self[at] for at in range(len(self)))


@dataclass(frozen=True)
class PairIndex:
    """What is kept in memory of every pair: its ``length_of``; and a ``digest`` of all pairs."""

    lengths: NDArray[np.int32]
    digest: str

    @classmethod
    def of(cls, pairs: Pairs, captioner: Captioner) -> PairIndex:
        """Read all pairs once, without their images.

        Raises:
            StageError: a pair is longer than the captioner's context.
        """
        lengths, digest = array("i"), hashlib.sha256(b"[")
        found = each(pairs, INDEXED)
        while part := list(islice(found, INDEXED_AT_ONCE)):
            require_context(part, captioner)
            for pair in part:
                digest.update((", " if lengths else "").encode() + json.dumps(_trained_on(pair)).encode())
                lengths.append(length_of(pair))
        digest.update(b"]")
        return cls(np.array(lengths, np.int32), digest.hexdigest()[:16])


def each(pairs: Pairs, columns: Sequence[str]) -> Iterator[SelectedPair]:
    """All pairs in order; where they are a table, only ``columns`` of them are read."""
    return pairs.scan(columns) if isinstance(pairs, PairTable) else iter(pairs)


def _trained_on(pair: SelectedPair) -> list[object]:
    """What of a pair reference log-probabilities depend on."""
    tokens = [pair[role]["token_ids"] for role in ("chosen", "rejected")]
    return [pair["sample_id"], pair["prompt"], pair["image"]["sha256"], *tokens]
