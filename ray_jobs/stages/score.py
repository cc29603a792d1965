"""Stage 2: every sentence of both captions scored against the image by CLIP on Ray Data actors."""

from __future__ import annotations

from jsfree import schemas
from jsfree.run.run import Manifest
from jsfree.stages.scoring import ClipScorer
from ray_jobs.rounds import Round, StageRequest


def score_pairs(current: Round, pairs: Manifest) -> Manifest:
    """Sentence scores, inversion and gap of every pair (paper, section 3.4)."""
    return current.sharded("scored", [score_request(current, pairs.fingerprint)])[0]


def score_request(current: Round, pairs: str) -> StageRequest:
    """The scoring of pairs with the fingerprint ``pairs``."""
    config = current.config
    return StageRequest(
        current.number,
        "scored",
        current.fingerprint(pairs, config.fingerprint("clip", "score")),
        current.stage("pairs"),
        schemas.PAIRS,
        schemas.SCORED,
        ClipScorer,
        {"config": config},
        config.score.resources,
    )
