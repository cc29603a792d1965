"""Selects preference pairs from the scored shards of a round, in memory that is independent of captions and images.

The scored shards are read twice: first the columns on which the selection depends, then whole rows. The selected rows
are sorted by rank, in temporary files if there are many, and written as shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jsfree import schemas
from jsfree.config import Select
from jsfree.run.folder import Folder, shard_name
from jsfree.run.sorting import RowSorter
from jsfree.run.streaming import scan
from jsfree.stages.pair_selection import PairChoice, PairColumns, choose_pairs, is_high_chosen, required_columns

BUCKET_BYTES = 48 * 2**20
"""Size of the rows that are sorted in memory at once; peak memory is a few times larger."""
SHARD_BYTES = 64 * 2**20
GROUP_ROWS, GROUP_BYTES = 32, 4 * 2**20
"""Maximum size of a row group, which a training worker reads to access one pair."""


def select_shards(
    scored: Folder, selected: Folder, settings: Select, seed: int, shard_rows: int, scorers: int = 1
) -> PairChoice:
    """Select pairs from the shards in ``scored`` and write them to ``selected``, sorted by rank.

    Args:
        shard_rows: maximum pairs per shard; shards with embedded images have fewer.
        scorers: number of CLIP models that scored the pairs (``clip.second``).

    Raises:
        StageError: no pair remains.
        StorageError: a shard, or the temporary folder, cannot be read or written.
    """
    tables = scan(scored, schemas.scored_schema(0, scorers), required_columns(settings))
    columns = PairColumns.concatenate(PairColumns.from_table(table, settings) for table in tables)
    choice = choose_pairs(columns, settings, seed)
    write_selected(selected, _ranked_rows(scored, choice, settings, seed), shard_rows)
    return choice


def write_selected(selected: Folder, tables: Iterable[pa.Table], shard_rows: int) -> None:
    """Write selected pairs, which arrive sorted by rank, as shards.

    Args:
        shard_rows: maximum pairs per shard; shards with embedded images have fewer.

    Raises:
        StorageError: a shard cannot be written.
    """
    for number in selected.shards():  # an interrupted attempt may have had other shard boundaries
        selected.remove(shard_name(number))
    shards = (shard for table in tables for shard in _split_table(table, shard_rows, SHARD_BYTES))
    for number, shard in enumerate(shards):
        selected.write_table(shard_name(number), shard, group_rows=_rows_within(shard, GROUP_ROWS, GROUP_BYTES))


def _ranked_rows(scored: Folder, choice: PairChoice, settings: Select, seed: int) -> Iterator[pa.Table]:
    start = 0
    for rows in _sorted_rows(scored, choice):
        end = start + rows.num_rows
        yield _add_ranks(_add_roles(rows, settings, seed), choice, slice(start, end))
        start = end


def _sorted_rows(scored: Folder, choice: PairChoice) -> Iterator[pa.Table]:
    """Read the selected rows in the order of ``choice``."""
    positions = np.full(choice.facts["pairs"], -1, np.int64)
    positions[choice.indices] = np.arange(len(choice.indices))
    with closing(RowSorter(BUCKET_BYTES)) as sorter:
        start = 0
        for table in scan(scored, schemas.SCORED):
            end = start + table.num_rows
            kept = np.flatnonzero(positions[start:end] >= 0)
            if len(kept):
                sorter.add(table.take(pa.array(kept)), positions[start:end][kept])
            start = end
        yield from sorter.sorted()


def _add_roles(rows: pa.Table, settings: Select, seed: int) -> pa.Table:
    """Add ``chosen`` and ``rejected`` to scored rows, as ``assign_roles`` but by columns."""
    low, high = rows["low"], rows["high"]
    pairs = zip(rows["sample_id"].to_pylist(), rows["inverted"].to_pylist(), strict=True)
    swapped = pa.array([is_high_chosen(*pair, settings, seed) for pair in pairs], pa.bool_())
    chosen, rejected = pc.if_else(swapped, high, low), pc.if_else(swapped, low, high)
    columns = {name: rows[name] for name in schemas.SCORED.names}
    return pa.table({**columns, "chosen": chosen, "rejected": rejected})


def _add_ranks(rows: pa.Table, choice: PairChoice, part: slice) -> pa.Table:
    """Complete rows with roles, a ``part`` of the choice, to rows of ``schemas.SELECTED``."""
    columns = {name: rows[name] for name in rows.column_names}
    columns["gap"] = pa.array(choice.gaps[part])
    columns["rank"], columns["split"] = pa.array(choice.ranks[part]), pa.array(choice.splits[part], pa.int32())
    return pa.table(columns).cast(schemas.SELECTED)


def _split_table(table: pa.Table, rows: int, size: int) -> Iterator[pa.Table]:
    """Split a table into parts of at most ``rows`` rows and about ``size`` bytes."""
    rows = _rows_within(table, rows, size)
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def _rows_within(table: pa.Table, rows: int, size: int) -> int:
    """Number of rows, at most ``rows``, that take about ``size`` bytes."""
    return int(max(1, min(rows, size * table.num_rows // max(1, table.nbytes))))
