"""Stage 5: captions of the models before and after the round, their CLIP scores, and the metrics.

The evaluation set is listed and hashed before the first pairs are made, so that no round trains on its images.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from jsfree import schemas
from jsfree.config import Mode, RunConfig
from jsfree.config.settings import fingerprinted_settings
from jsfree.evaluation import labelfree
from jsfree.evaluation.rounds_stop import CHANGES
from jsfree.images.overlap import hash_images
from jsfree.images.sources import evaluation_samples
from jsfree.publishing.model_card import write_card
from jsfree.run.folder import shard_name
from jsfree.run.run import Manifest
from jsfree.run.stages import LABEL_FREE, METRICS
from jsfree.run.streaming import scan
from jsfree.schemas import Sample, ScoredCaptionRow
from jsfree.stages.captioning import CaptionWriter
from jsfree.stages.scored_captioning import ScoredCaptionWriter
from jsfree.stages.scoring import ClipScorer
from ray_jobs.rounds import Model, Round
from ray_jobs.shards.actor import ShardedStage, StageCall
from ray_jobs.shards.tables import total_manifest
from ray_jobs.stages.generate import publish_samples, shards_in_flight

HASHES = "evaluation_hashes"
MEASURED_COLUMNS = ("sample_id", "image.id", "text", "finish", "sentences", "score")


def list_evaluation_samples(current: Round) -> Manifest:
    """Write the evaluation samples, which are the same for every round."""
    config = current.config
    fingerprint = current.fingerprint(config.fingerprint("seed", "prompt", "source", "evaluate.source", "shard_rows"))
    return current.complete(
        "evaluation",
        fingerprint,
        lambda: publish_samples(current, "evaluation", evaluation_samples(config)),
    )


def hash_evaluation_images(current: Round) -> str:
    """Hash the images of the evaluation set, once for all rounds; return the folder or URI of the hashes.

    Does nothing if the round's pairs are finished, because the images may no longer exist.

    Raises:
        SourceError: the evaluation images cannot be listed.
        StageError: more of them are unusable than ``max_failed_fraction`` allows.
    """
    first = replace(current, number=1)
    table = first.table(HASHES, schemas.EVALUATION_HASHES)
    if current.run.manifest(current.number, "pairs") is not None:
        return table.uri
    samples = list_evaluation_samples(first)

    def work() -> Manifest:
        folder, limits = first.stage("evaluation"), current.config.evaluate.source
        for number in folder.shards():
            if table.receipt(number) is None:
                started = time.perf_counter()
                rows: list[Sample] = folder.read_table(shard_name(number), schemas.SAMPLES).to_pylist()
                table.publish(number, hash_images(rows, limits), len(rows), time.perf_counter() - started)
        return total_manifest(HASHES, table, current.config.max_failed_fraction)

    first.complete(HASHES, first.fingerprint(samples.fingerprint), work)
    return table.uri


def decoding_key(mode: Mode) -> str:
    """The settings of a mode in the fingerprints of its captions; those that older runs lack only if they are set."""
    return mode.model_dump_json(include=set(fingerprinted_settings(mode)))


def captioning_stage(home: Round, model: Model, mode: str, samples: Manifest) -> ShardedStage:
    """Captions of ``model`` in one mode, on the evaluation samples; ``home`` is the round that stores them."""
    config = home.config
    decoding = decoding_key(config.evaluate.modes[mode])
    name = f"captions/{model.name}-{mode}"
    one_pass = config.score.with_generation
    stage = ShardedStage(
        name=name,
        number=home.number,
        fingerprint=home.fingerprint(
            samples.fingerprint, model.fingerprint, config.fingerprint("seed", "captioner"), decoding
        ),
        source=home.run.stage(1, "evaluation").uri,
        source_schema=schemas.SAMPLES,
        target=home.table(name, schemas.CAPTIONS),
        stage_class=ScoredCaptionWriter if one_pass else CaptionWriter,
        arguments={"config": config, "model_ref": model.ref, "model": model.name, "mode": mode},
        resources=config.generate.resources,
        attempts=home.attempts(name),
        shards_in_flight=shards_in_flight(config),
    )
    return replace(stage, second_stage=scoring_stage(home, stage)) if one_pass else stage


def scoring_stage(current: Round, captions: ShardedStage) -> ShardedStage:
    """CLIP scores of captions."""
    config = current.config
    home = replace(current, number=captions.number)
    name = captions.name.replace("captions/", "captions_scored/")
    return ShardedStage(
        name=name,
        number=home.number,
        fingerprint=home.fingerprint(captions.fingerprint, config.clip_fingerprint),
        source=captions.target.uri,
        source_schema=schemas.CAPTIONS,
        target=home.table(name, schemas.SCORED_CAPTIONS),
        stage_class=caption_scorer,
        arguments={"config": config},
        resources=config.score.resources,
        attempts=home.attempts(name),
    )


def caption_scorer(config: RunConfig, device: str) -> StageCall:
    """Load the scorer and return its method that scores captions instead of pairs."""
    return ClipScorer(config, device).score_rows


def caption_images(current: Round, model: Model) -> dict[str, tuple[Round, Model]]:
    """Write scored captions before and after; return the models, and the rounds that store their captions.

    The samples and the seed's captions belong to the first round and are shared by all rounds.
    """
    first = replace(current, number=1)
    samples = list_evaluation_samples(first)
    homes = {"before": (first, current.seed), "after": (current, model)}
    captions = [
        captioning_stage(home, each, mode, samples)
        for home, each in homes.values()
        for mode in current.config.evaluate.modes
    ]
    current.complete_sharded("captions", captions)
    current.complete_sharded("captions_scored", [scoring_stage(current, stage) for stage in captions])
    return homes


def evaluate_model(current: Round, model: Model) -> Model:
    """Write captions before and after, ``metrics.json``, ``label_free.json`` and the model card; return ``model``."""
    homes = caption_images(current, model)
    rows = {
        when: {mode: _rows(home, each, mode) for mode in current.config.evaluate.modes}
        for when, (home, each) in homes.items()
    }
    folder, bootstrap = current.run.round(current.number), current.config.evaluate.bootstrap
    if current.config.evaluate.source.kind == "miniworld":
        folder.write_json(METRICS, _with_truth(rows, bootstrap))
    label_free = _label_free(rows, bootstrap)
    changes = _changes(current, rows["after"], label_free["low_score"])
    folder.write_json(LABEL_FREE, label_free | ({CHANGES: changes} if changes else {}))
    write_card(current.run, current.number)
    return model


def _rows(current: Round, model: Model, mode: str) -> list[ScoredCaptionRow]:
    """Scored captions with the columns that are measured, without images and tokens."""
    folder = current.stage(f"captions_scored/{model.name}-{mode}")
    return [row for table in scan(folder, schemas.SCORED_CAPTIONS, MEASURED_COLUMNS) for row in table.to_pylist()]


def _label_free(rows: dict[str, dict[str, list[ScoredCaptionRow]]], bootstrap: int) -> dict[str, Any]:
    """Metrics without ground truth; a low sentence scores below the lowest tenth of the seed's sentences."""
    first = next(iter(rows["before"]))
    low = labelfree.low_score_threshold(rows["before"][first])
    return {
        **{
            when: {mode: labelfree.summarise(of, low, bootstrap) for mode, of in modes.items()}
            for when, modes in rows.items()
        },
        "captions": len(rows["after"][first]),
        "low_score": low,
    }


def _changes(current: Round, after: dict[str, list[ScoredCaptionRow]], low_score: float) -> dict[str, Any]:
    """Changes of label-free metrics since the model that the round started from, by mode.

    Empty if that model has no captions, which is possible if the stages of a round are run one by one.
    """
    config, home = current.config, replace(current, number=max(1, current.number - 1))
    names = (f"captions_scored/{current.start.name}-{mode}" for mode in after)
    if not all(current.run.manifest(home.number, name) for name in names):
        return {}
    return {
        mode: labelfree.changes(_rows(home, current.start, mode), rows, low_score, config.evaluate.bootstrap)
        for mode, rows in after.items()
    }


def _with_truth(rows: dict[str, dict[str, list[ScoredCaptionRow]]], bootstrap: int) -> dict[str, Any]:
    """Metrics against the ground truth of MiniWorld's scenes."""
    from jsfree.evaluation import miniworld as metrics
    from jsfree.miniworld.world import scene_from_id

    def measured(of: list[ScoredCaptionRow]) -> dict[str, Any]:
        counts = [metrics.count_caption(scene_from_id(row["image"]["id"]), row["text"]) for row in of]
        return metrics.summarise(counts, bootstrap)

    result: dict[str, Any] = {when: {mode: measured(of) for mode, of in modes.items()} for when, modes in rows.items()}
    return {**result, "scenes": len(next(iter(rows["after"].values())))}
