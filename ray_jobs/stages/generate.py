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
from ray_jobs.rounds import Round
from ray_jobs.shards.actor import ShardedStage
from ray_jobs.stages.listings import fix_listing, remove_shards
from ray_jobs.stages.score import scoring_stage


def list_samples(current: Round) -> Manifest:
    """Write the round's samples, in an order drawn with the run's seed."""
    fingerprint = current.fingerprint(current.config.fingerprint("seed", "prompt", "source", "shard_rows"))

    def work() -> Manifest:
        return publish_samples(current, "samples", training_samples(current.config, current.number))

    return current.complete("samples", fingerprint, work)


def generate_pairs(current: Round, samples: Manifest, evaluation_hashes: str | None = None) -> Manifest:
    """Two captions of every sample (paper, section 3.2).

    Args:
        evaluation_hashes: folder or URI of the hashes of images that are excluded.
    """
    config = current.config
    one_pass = config.score.with_generation
    fingerprint = current.fingerprint(
        samples.fingerprint, current.start.fingerprint, config.fingerprint("seed", "captioner", "generate")
    )
    if evaluation_hashes and current.begin("pairs", fingerprint) is None:
        _remove_evaluation_images(current, evaluation_hashes)
    stage = ShardedStage(
        name="pairs",
        number=current.number,
        fingerprint=fingerprint,
        source=current.stage("samples").uri,
        source_schema=schemas.SAMPLES,
        target=current.table("pairs", schemas.pairs_schema(config.generate.samples)),
        stage_class=ScoredPairGenerator if one_pass else PairGenerator,
        arguments={
            "config": config,
            "model_ref": current.start.ref,
            "round_number": current.number,
            "evaluation_hashes": evaluation_hashes,
        },
        resources=config.generate.resources,
        attempts=current.attempts("pairs"),
        shards_in_flight=shards_in_flight(config),
        second_stage=scoring_stage(current, fingerprint) if one_pass else None,
    )
    return current.complete_sharded("pairs", [stage])["pairs"]


def _remove_evaluation_images(current: Round, evaluation_hashes: str) -> None:
    """Remove shards of an earlier attempt that contain images of the evaluation set, so that they are made again.

    Such shards were made with another evaluation set, or by a version of jsfree that did not exclude images.
    """
    pairs = current.stage("pairs")
    stale = shards_with(pairs, read_hashes(evaluation_hashes)) if pairs.shards() else []
    remove_shards(current.stage("scored"), stale)  # first: pairs without scores would be scored, but not vice versa
    remove_shards(pairs, stale)


def shards_in_flight(config: RunConfig) -> int:
    """Shards that a replica decodes together: later ones fill the slots while the last rows of the oldest finish."""
    return 2 + math.ceil(config.generate.slots / config.shard_rows)


def publish_samples(current: Round, stage: str, samples: Samples) -> Manifest:
    """Publish samples as the shards of a stage, and unusable rows of the source as its error rows.

    If the source has changed when the stage is resumed, the shards of the earlier attempt are removed.

    Raises:
        StageError: more rows of the source are unusable than ``max_failed_fraction`` allows.
    """
    fix_listing(current, stage, samples.digest())
    errors = current.errors(stage)
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
    """Write the missing shards of samples; the manifest counts all shards on disk."""
    for number, start in enumerate(range(0, len(samples), shard_rows)):
        if not folder.exists(shard_name(number)):
            rows = list(samples[start : start + shard_rows])
            folder.write_table(shard_name(number), pa.Table.from_pylist(rows, schema=schemas.SAMPLES))
    written = folder.count_rows()
    return Manifest(rows_in=written, rows_out=written)
