"""Stage 1: samples, and two captions of each by dual-path decoding on Ray Data actors."""

from __future__ import annotations

import math

import pyarrow as pa

from jsfree import schemas
from jsfree.captioning import PairGenerator
from jsfree.config import RunConfig
from jsfree.images import training_samples
from jsfree.onepass import ScoredPairGenerator
from jsfree.overlap import read_hashes, shards_with
from jsfree.schemas import Sample
from jsfree.storage import Folder, Manifest, cut, shard_name
from ray_jobs.listings import remove_shards
from ray_jobs.rounds import Round, StageRequest
from ray_jobs.score_pairs import score_request


def list_samples(current: Round) -> Manifest:
    """Write the round's samples in the order that the seed draws."""
    fingerprint = current.fingerprint(current.config.fingerprint("seed", "prompt", "source", "shard_rows"))

    def work() -> Manifest:
        samples = training_samples(current.config, current.number)
        return write_samples(samples, current.stage("samples"), current.config.shard_rows)

    return current.once("samples", fingerprint, work)


def generate_pairs(current: Round, samples: Manifest, evaluation_hashes: str | None = None) -> Manifest:
    """Two captions of every sample (paper, section 3.2).

    Args:
        evaluation_hashes: folder or URI of the hashes of images that get no captions.
    """
    config = current.config
    one_pass = config.score.with_generation
    fingerprint = current.fingerprint(
        samples.fingerprint, current.start.fingerprint, config.fingerprint("seed", "captioner", "generate")
    )
    if evaluation_hashes and current.run.begin(current.number, "pairs", fingerprint) is None:
        _remove_evaluation_images(current, evaluation_hashes)
    request = StageRequest(
        current.number,
        "pairs",
        fingerprint,
        current.stage("samples"),
        schemas.SAMPLES,
        schemas.PAIRS,
        ScoredPairGenerator if one_pass else PairGenerator,
        {
            "config": config,
            "model_ref": current.start.ref,
            "round_number": current.number,
            "evaluation_hashes": evaluation_hashes,
        },
        config.generate.resources,
        at_once=at_once(config),
        beside=score_request(current, fingerprint) if one_pass else None,
    )
    return current.sharded("pairs", [request])[0]


def _remove_evaluation_images(current: Round, evaluation_hashes: str) -> None:
    """Have shards made again that an earlier attempt wrote, with images of the evaluation set in them.

    It had another evaluation set, or jsfree did not exclude images then.
    """
    pairs = current.stage("pairs")
    stale = shards_with(pairs, read_hashes(evaluation_hashes)) if pairs.shards() else []
    remove_shards(current.stage("scored"), stale)  # first: pairs without scores are scored, scores without pairs stay
    remove_shards(pairs, stale)


def at_once(config: RunConfig) -> int:
    """Shards that a replica decodes together: those behind the oldest one fill its slots while that one ends."""
    return 2 + math.ceil(config.generate.slots / config.shard_rows)


def write_samples(samples: list[Sample], folder: Folder, shard_rows: int) -> Manifest:
    """Publish samples as shards; a shard that is there is left alone."""
    for number, rows in enumerate(cut(samples, shard_rows)):
        if not folder.exists(shard_name(number)):
            folder.write_table(shard_name(number), pa.Table.from_pylist(list(rows), schema=schemas.SAMPLES))
    return Manifest("", len(samples), len(samples), 0, 0.0, 0.0, 0)
