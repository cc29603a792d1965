"""Stage 2: scores of every sentence, by CLIP or by the captioner itself.

Where verification needs them, also log-probabilities under m0.
"""

from __future__ import annotations

from collections.abc import Callable

from jsfree import schemas
from jsfree.config import RunConfig
from jsfree.run.run import Manifest
from jsfree.stages.judging import CaptionerJudge
from jsfree.stages.likelihoods import LikelihoodScorer
from jsfree.stages.two_scorers import pair_scorer
from ray_jobs.rounds import Round
from ray_jobs.shards.actor import ShardedStage, StageCall


def score_pairs(current: Round, pairs: Manifest) -> Manifest:
    """Sentence scores, inversion and gap of every pair (paper, section 3.4).

    In later rounds of ``select.strategy: coverage``, also log-probabilities of all candidates under m0.
    """
    scored = current.complete_sharded("scored", [scoring_stage(current, pairs.fingerprint)])["scored"]
    if needs_likelihoods(current.config, current.number):
        current.complete_sharded("likelihoods", [likelihood_stage(current, pairs.fingerprint)])
    return scored


def needs_likelihoods(config: RunConfig, number: int) -> bool:
    """Whether round ``number`` needs log-probabilities under m0; in the first round, m0 itself generates."""
    return config.select.strategy == "coverage" and "likelihood" in config.select.coverage.signals and number > 1


def scoring_stage(current: Round, pairs: str) -> ShardedStage:
    """The scoring of the round's pairs, which have the fingerprint ``pairs``, by ``score.judge``."""
    config = current.config
    if config.score.judge == "captioner":
        stage_class: Callable[..., StageCall] = CaptionerJudge
        judged_by: tuple[str, ...] = (current.seed.fingerprint, config.fingerprint("captioner", "score"))
        arguments, resources = {"config": config, "model_ref": current.seed.ref}, config.generate.resources
    else:
        stage_class, judged_by = pair_scorer, (config.clip_fingerprint,)
        if config.clip.second is not None:
            judged_by += (config.fingerprint("clip.second"),)
        arguments, resources = {"config": config}, config.score.resources
    return ShardedStage(
        name="scored",
        number=current.number,
        fingerprint=current.fingerprint(pairs, *judged_by),
        source=current.stage("pairs").uri,
        source_schema=schemas.pairs_schema(config.generate.samples),
        target=current.table("scored", schemas.scored_schema(config.generate.samples, len(config.clip.scorers))),
        stage_class=stage_class,
        arguments=arguments,
        resources=resources,
        attempts=current.attempts("scored"),
    )


def likelihood_stage(current: Round, pairs: str) -> ShardedStage:
    """Log-probabilities of the round's candidates under m0."""
    config = current.config
    return ShardedStage(
        name="likelihoods",
        number=current.number,
        fingerprint=current.fingerprint(pairs, current.seed.fingerprint, config.fingerprint("captioner")),
        source=current.stage("pairs").uri,
        source_schema=schemas.PAIRS_WITH_CANDIDATES,
        target=current.table("likelihoods", schemas.LIKELIHOODS),
        stage_class=LikelihoodScorer,
        arguments={"config": config, "model_ref": current.seed.ref},
        resources=config.generate.resources,
        attempts=current.attempts("likelihoods"),
    )
