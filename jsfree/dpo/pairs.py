"""Access to the selected pairs in training: an index in memory, full pairs read from disk for each batch."""

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
from jsfree.dpo.batching import PAIR, check_context_length, pair_length, tokens_of
from jsfree.models.loading import Captioner
from jsfree.run.folder import READERS, Folder, shard_name
from jsfree.run.streaming import read_group, scan
from jsfree.schemas import Role, SelectedPair

COLUMNS = ("sample_id", "image", "prompt", "chosen.token_ids", "rejected.token_ids", "target.token_ids")
"""Columns of a pair that training reads, of those that the table has."""
INDEX_COLUMNS = ("sample_id", "image.sha256", "prompt", *COLUMNS[3:])
"""Columns that the index is built from: all but the image itself."""
CACHED_GROUPS = 8
"""Row groups that a ``PairTable`` keeps in memory; selection writes groups of at most 4 MiB."""
INDEX_CHUNK = 512
"""Pairs that are read and checked together while the index is built."""


class Pairs(Protocol):
    """A sequence of selected pairs: a list or a ``PairTable``."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> SelectedPair: ...

    def __iter__(self) -> Iterator[SelectedPair]: ...


class PairTable:
    """The selected pairs of a round, read from their shards on access. Thread-safe.

    A pair has only the columns ``COLUMNS``, without sentences and scores.
    """

    def __init__(self, folder: Folder, schema: pa.Schema = schemas.SELECTED) -> None:
        """Read the footers of all shards in ``folder``.

        Args:
            schema: the schema of the shards (``schemas.selected``).

        Raises:
            StorageError: a shard cannot be read.
        """
        self._folder, self._schema = folder, schema
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
        number = int(np.searchsorted(self._ends, position, side="right"))
        group = self._group(number)
        rows = group.slice(group.num_rows - (int(self._ends[number]) - position), 1).to_pylist()
        return cast(SelectedPair, rows[0])

    def __iter__(self) -> Iterator[SelectedPair]:
        return self.scan(COLUMNS)

    def scan(self, columns: Sequence[str]) -> Iterator[SelectedPair]:
        """Iterate over all pairs in order, reading only ``columns``, such as ``chosen.token_ids``."""
        for table in scan(self._folder, self._schema, columns):
            yield from table.to_pylist()

    def _group_sizes(self, shard: int) -> list[int]:
        with self._folder.open(shard_name(shard)) as file:
            metadata = pq.read_metadata(file)
            return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def _read_group(self, number: int) -> pa.Table:
        shard, group = self._groups[number]
        return read_group(self._folder, shard, group, self._schema, COLUMNS)


@dataclass(frozen=True)
class Subset:
    """The pairs at some ``positions`` of ``table``, in that order."""

    table: Pairs
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, position: int, /) -> SelectedPair:
        return self.table[int(self.positions[position])]

    def __iter__(self) -> Iterator[SelectedPair]:
        return (self[position] for position in range(len(self)))


@dataclass(frozen=True)
class PairIndex:
    """``pair_length`` of every pair, and a digest of all pairs."""

    lengths: NDArray[np.int32]
    digest: str

    @classmethod
    def of(cls, pairs: Pairs, captioner: Captioner, roles: Sequence[Role] = PAIR) -> PairIndex:
        """Build the index, reading all pairs once without their images.

        Args:
            roles: the captions whose tokens are counted.

        Raises:
            StageError: a pair is longer than the captioner's context.
        """
        lengths, digest = array("i"), hashlib.sha256(b"[")
        iterator = iterate(pairs, INDEX_COLUMNS)
        while chunk := list(islice(iterator, INDEX_CHUNK)):
            check_context_length(chunk, captioner, roles)
            for pair in chunk:
                digest.update((", " if lengths else "").encode() + json.dumps(_digested(pair)).encode())
                lengths.append(pair_length(pair, roles))
        digest.update(b"]")
        return cls(np.array(lengths, np.int32), digest.hexdigest()[:16])


def iterate(pairs: Pairs, columns: Sequence[str]) -> Iterator[SelectedPair]:
    """Iterate over all pairs in order; of a ``PairTable`` only ``columns`` are read."""
    return pairs.scan(columns) if isinstance(pairs, PairTable) else iter(pairs)


def _digested(pair: SelectedPair) -> list[object]:
    """The fields of a pair that reference log-probabilities depend on."""
    tokens = [list(tokens_of(pair, role)) for role in PAIR]
    return [pair["sample_id"], pair["prompt"], pair["image"]["sha256"], *tokens]
