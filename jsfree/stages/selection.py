"""Selects the preference pairs of a round from its scored pairs, in memory that does not grow with captions or images.

The scored shards are read twice: first the few columns that the choice is made by, then whole rows, of which those
that are kept are sorted by rank (through temporary files where they are many) and written as shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jsfree import schemas
from jsfree.config import Select
from jsfree.run.folder import Folder, shard_name
from jsfree.run.sorting import RowSorter
from jsfree.run.streaming import scan
from jsfree.stages.preference import Choice, PairColumns, choose, columns_read

BUCKET_BYTES = 48 * 2**20
"""Rows that are sorted in memory at once; selection takes a few times as much."""
SHARD_BYTES = 64 * 2**20
GROUP_ROWS, GROUP_BYTES = 32, 4 * 2**20
"""Size of a row group at most: what a training worker reads to get at one pair."""


def select_shards(scored: Folder, selected: Folder, settings: Select, seed: int, shard_rows: int) -> Choice:
    """Choose among the pairs in ``scored`` and write those that are kept to ``selected``, in the order of their ranks.

    Args:
        shard_rows: pairs in a shard at most; fewer where their images are embedded.

    Raises:
        StageError: no pair is left.
        StorageError: a shard, or the temporary folder, cannot be read or written.
    """
    found = (PairColumns.of(table, settings) for table in scan(scored, schemas.SCORED, columns_read(settings)))
    choice = choose(PairColumns.joined(found), settings, seed)
    for number in selected.shards():  # an attempt that was interrupted may have cut its shards differently
        selected.remove(shard_name(number))
    number, start = 0, 0
    for rows in _in_order(scored, choice):
        end = start + rows.num_rows
        ranked = _ranked(rows, choice.ranks[start:end], choice.splits[start:end], settings)
        for shard in _cut(ranked, shard_rows, SHARD_BYTES):
            selected.write_table(shard_name(number), shard, group_rows=_rows_within(shard, GROUP_ROWS, GROUP_BYTES))
            number += 1
        start = end
    return choice


def _in_order(scored: Folder, choice: Choice) -> Iterator[pa.Table]:
    """The rows of ``choice`` in its order."""
    places = np.full(choice.facts["pairs"], -1, np.int64)
    places[choice.rows] = np.arange(len(choice.rows))
    with closing(RowSorter(BUCKET_BYTES)) as sorter:
        start = 0
        for table in scan(scored, schemas.SCORED):
            end = start + table.num_rows
            kept = np.flatnonzero(places[start:end] >= 0)
            if len(kept):
                sorter.add(table.take(pa.array(kept)), places[start:end][kept])
            start = end
        yield from sorter.sorted()


def _ranked(rows: pa.Table, ranks: NDArray[np.int64], splits: NDArray[np.int64], settings: Select) -> pa.Table:
    """Scored rows as rows of ``schemas.SELECTED``; as ``with_roles`` in columns."""
    low, high = rows["low"], rows["high"]
    swapped = pc.and_(rows["inverted"], settings.inverted == "swap")
    chosen, rejected = pc.if_else(swapped, high, low), pc.if_else(swapped, low, high)
    columns = {name: rows[name] for name in schemas.SCORED.names}
    columns["gap"] = pc.subtract(pc.struct_field(chosen, "score"), pc.struct_field(rejected, "score"))
    columns |= {"chosen": chosen, "rejected": rejected, "rank": pa.array(ranks), "split": pa.array(splits, pa.int32())}
    return pa.table(columns).cast(schemas.SELECTED)


def _cut(table: pa.Table, rows: int, size: int) -> Iterator[pa.Table]:
    """Parts of at most ``rows`` rows and about ``size`` bytes."""
    rows = _rows_within(table, rows, size)
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def _rows_within(table: pa.Table, rows: int, size: int) -> int:
    """At most ``rows``, and so many that they take about ``size`` bytes."""
    return int(max(1, min(rows, size * table.num_rows // max(1, table.nbytes))))
