"""Stage 3: pairs sorted by score gap, cut into splits, a moderate range kept. Runs on the driver."""

from __future__ import annotations

import pyarrow as pa

from jsfree import schemas
from jsfree.preference import select_pairs as select
from jsfree.storage import Manifest, shard_name
from ray_jobs.rounds import Round


def select_pairs(current: Round, scored: Manifest) -> Manifest:
    """Preference pairs of the round (paper, section 3.4, "splits")."""
    config = current.config

    def work() -> Manifest:
        rows = current.stage("scored").read_shards(schemas.SCORED).to_pylist()
        selection = select(rows, config.select, config.seed)
        table = pa.Table.from_pylist(selection.rows, schema=schemas.SELECTED)
        current.stage("selected").write_table(shard_name(0), table)
        return Manifest("", len(rows), len(selection.rows), 0, 0.0, 0.0, 0, selection.facts)

    fingerprint = current.fingerprint(scored.fingerprint, config.fingerprint("seed", "select"))
    return current.once("selected", fingerprint, work)
