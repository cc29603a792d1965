"""Stage 1: samples, and two captions of each by dual-path decoding on Ray Data actors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from jsfree import schemas
from jsfree.config import RunConfig
from jsfree.errors import StageError
from jsfree.images.overlap import read_hashes, shards_with
from jsfree.images.samples import Samples
from jsfree.images.sources import training_samples
from jsfree.run.folder import Folder, shard_name
from jsfree.run.run import Manifest
from jsfree.schemas import Sample
from jsfree.stages.captioning import PairGenerator
from jsfree.stages.scored_captioning import ScoredPairGenerator
from ray_jobs.rounds import Round, StageRequest
from ray_jobs.stages.listings import fix_listing, remove_shards
from ray_jobs.stages.score import score_request


def list_samples(current: Round) -> Manifest:
    """Write the round's samples in the order that the seed draws."""
    fingerprint = current.fingerprint(current.config.fingerprint("seed", "prompt", "source", "shard_rows"))

    def work() -> Manifest:
        return publish_samples(current, "samples", training_samples(current.config, current.number))

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


def publish_samples(current: Round, stage: str, samples: Samples) -> Manifest:
    """Publish samples as the shards of a stage, and rows of the source that name no usable image as its error rows.

    The listing is fixed before the first shard is written. If the source has changed when the stage is resumed, the
    shards of the earlier attempt are removed.

    Raises:
        StageError: more rows of the source are unusable than ``max_failed_fraction`` allows.
    """
    fix_listing(current, stage, samples.digest())
    errors = current.run.round(current.number) / "errors" / stage
    for number, table in enumerate(samples.unusable.tables(stage)):
        errors.write_table(shard_name(number), table)
    failed, allowed = len(samples.unusable), current.config.max_failed_fraction
    if failed > allowed * samples.listed:
        raise StageError(
            f"stage {stage!r}: {failed} of the {samples.listed} rows of the source failed, more than"
            f" max_failed_fraction ({allowed:g}) allows; first: {samples.unusable.first}",
            f"see {errors.uri}",
        )
    written = write_samples(samples, current.stage(stage), current.config.shard_rows)
    return replace(written, rows_in=written.rows_out + failed, rows_failed=failed)


def write_samples(samples: Sequence[Sample], folder: Folder, shard_rows: int) -> Manifest:
    """Write samples shard by shard; one that exists is left alone. The manifest counts what is on disk."""
    for number, start in enumerate(range(0, len(samples), shard_rows)):
        if not folder.exists(shard_name(number)):
            rows = list(samples[start : start + shard_rows])
            folder.write_table(shard_name(number), pa.Table.from_pylist(rows, schema=schemas.SAMPLES))
    written = folder.count_rows()
    return Manifest(rows_in=written, rows_out=written)
