"""Stage 2: CLIP scores of every sentence of both captions, on Ray Data actors."""

from __future__ import annotations

from jsfree import schemas
from jsfree.run.run import Manifest
from jsfree.stages.scoring import ClipScorer
from ray_jobs.rounds import Round
from ray_jobs.shards.actor import ShardedStage


def score_pairs(current: Round, pairs: Manifest) -> Manifest:
    """Sentence scores, inversion and gap of every pair (paper, section 3.4)."""
    return current.complete_sharded("scored", [scoring_stage(current, pairs.fingerprint)])["scored"]


def scoring_stage(current: Round, pairs: str) -> ShardedStage:
    """The scoring of the round's pairs, which have the fingerprint ``pairs``."""
    config = current.config
    return ShardedStage(
        name="scored",
        number=current.number,
        fingerprint=current.fingerprint(pairs, config.fingerprint("clip", "score")),
        source=current.stage("pairs").uri,
        source_schema=schemas.PAIRS,
        target=current.table("scored", schemas.SCORED),
        stage_class=ClipScorer,
        arguments={"config": config},
        resources=config.score.resources,
        attempts=current.attempts("scored"),
    )
