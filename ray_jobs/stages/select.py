"""Stage 3: pairs sorted by score gap and cut into splits, of which a moderate range is kept; on the driver."""

from __future__ import annotations

from jsfree.run.run import Manifest
from jsfree.stages.shard_selection import select_shards
from ray_jobs.rounds import Round


def select_pairs(current: Round, scored: Manifest) -> Manifest:
    """Preference pairs of the round (paper, section 3.4, "splits")."""
    config = current.config

    def work() -> Manifest:
        source, target = current.stage("scored"), current.stage("selected")
        facts = select_shards(source, target, config.select, config.seed, config.shard_rows).facts
        return Manifest(rows_in=facts["pairs"], rows_out=facts["kept"], facts=facts)

    fingerprint = current.fingerprint(scored.fingerprint, config.fingerprint("seed", "select"))
    return current.complete("selected", fingerprint, work)
