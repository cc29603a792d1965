"""Stage 5: captions of the models before and after, their CLIP scores, and the metrics.

The evaluation set is listed and hashed before the first pairs are made, so that no round trains on one of its images.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from jsfree import schemas
from jsfree.config import RunConfig
from jsfree.evaluation import labelfree
from jsfree.images.overlap import hash_images
from jsfree.images.sources import evaluation_samples
from jsfree.publishing.model_card import write_card
from jsfree.run.folder import shard_name
from jsfree.run.run import Manifest
from jsfree.run.streaming import scan
from jsfree.schemas import Sample, ScoredCaptionRow
from jsfree.stages.captioning import CaptionWriter
from jsfree.stages.scored_captioning import ScoredCaptionWriter
from jsfree.stages.scoring import ClipScorer
from ray_jobs.rounds import Model, Round, StageRequest
from ray_jobs.shards.runner import StageClass, Table, total
from ray_jobs.stages.generate import at_once, publish_samples

HASHES = "evaluation_hashes"

MEASURED = ("image.id", "text", "finish", "sentences", "score")


def list_evaluation_samples(current: Round) -> Manifest:
    """Write the evaluation's samples, the same for every round."""
    config = current.config
    fingerprint = current.fingerprint(config.fingerprint("seed", "prompt", "source", "evaluate.source", "shard_rows"))
    return current.once(
        "evaluation",
        fingerprint,
        lambda: publish_samples(current, "evaluation", evaluation_samples(config)),
    )


def hash_evaluation_images(current: Round) -> str:
    """Hash the evaluation set for the round's pairs, once for all rounds; the folder or URI of the hashes.

    A round whose pairs are finished needs none: its images may be gone. Runs on the driver.

    Raises:
        SourceError: the evaluation's images cannot be listed.
        StageError: more of them cannot be used than ``max_failed_fraction`` allows.
    """
    first = replace(current, number=1)
    table = Table(first.stage(HASHES).uri, schemas.EVALUATION_HASHES, (first.run.round(1) / "errors" / HASHES).uri)
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
        return total(HASHES, table, current.config.max_failed_fraction)

    first.once(HASHES, first.fingerprint(samples.fingerprint), work)
    return table.uri


def caption_request(home: Round, model: Model, mode: str, samples: Manifest) -> StageRequest:
    """Captions of ``model`` in one mode, on the evaluation's samples in the first round's folder."""
    config = home.config
    decoding = config.evaluate.modes[mode].model_dump_json()
    one_pass = config.score.with_generation
    request = StageRequest(
        home.number,
        f"captions/{model.name}-{mode}",
        home.fingerprint(samples.fingerprint, model.fingerprint, config.fingerprint("seed", "captioner"), decoding),
        home.run.stage(1, "evaluation"),
        schemas.SAMPLES,
        schemas.CAPTIONS,
        ScoredCaptionWriter if one_pass else CaptionWriter,
        {"config": config, "model_ref": model.ref, "model": model.name, "mode": mode},
        config.generate.resources,
        at_once=at_once(config),
    )
    return replace(request, beside=score_request(home, request)) if one_pass else request


def score_request(current: Round, written: StageRequest) -> StageRequest:
    """CLIP scores of captions."""
    config = current.config
    home = replace(current, number=written.number)
    return StageRequest(
        home.number,
        written.name.replace("captions/", "captions_scored/"),
        home.fingerprint(written.fingerprint, config.fingerprint("clip", "score")),
        home.stage(written.name),
        schemas.CAPTIONS,
        schemas.SCORED_CAPTIONS,
        caption_scorer,
        {"config": config},
        config.score.resources,
    )


def caption_scorer(config: RunConfig, device: str) -> StageClass:
    """The stage that scores captions of evaluation instead of pairs."""
    return ClipScorer(config, device).score_rows


def evaluate_model(current: Round, model: Model) -> Model:
    """Captions before and after, ``metrics.json``, ``label_free.json`` and then the model's card; the model."""
    # Samples and the seed's captions are made once, in the first round, for all rounds.
    first = replace(current, number=1)
    samples = list_evaluation_samples(first)
    homes = {"before": (first, current.seed), "after": (current, model)}
    written = [
        caption_request(home, each, mode, samples)
        for home, each in homes.values()
        for mode in current.config.evaluate.modes
    ]
    current.sharded("captions", written)
    current.sharded("captions_scored", [score_request(current, request) for request in written])
    rows = {
        when: {mode: _rows(home, each, mode) for mode in current.config.evaluate.modes}
        for when, (home, each) in homes.items()
    }
    folder = current.run.round(current.number)
    if current.config.evaluate.source.kind == "miniworld":
        folder.write_json("metrics.json", _with_truth(rows, current.config.evaluate.bootstrap))
    folder.write_json("label_free.json", _label_free(rows, current.config.evaluate.bootstrap))
    write_card(current.run, current.number)
    return model


def _rows(current: Round, model: Model, mode: str) -> list[ScoredCaptionRow]:
    """Captions for evaluation, with the columns that are measured: no images, no tokens."""
    folder = current.stage(f"captions_scored/{model.name}-{mode}")
    return [row for table in scan(folder, schemas.SCORED_CAPTIONS, MEASURED) for row in table.to_pylist()]


def _label_free(rows: dict[str, dict[str, list[ScoredCaptionRow]]], bootstrap: int) -> dict[str, Any]:
    """What can be said without truth; a low sentence is one below the seed's own lowest tenth."""
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


def _with_truth(rows: dict[str, dict[str, list[ScoredCaptionRow]]], bootstrap: int) -> dict[str, Any]:
    """Metrics against the truth of MiniWorld's scenes, in the layout of the design."""
    from jsfree.evaluation import miniworld as metrics
    from jsfree.miniworld.world import scene_from_id

    def measured(of: list[ScoredCaptionRow]) -> dict[str, Any]:
        counts = [metrics.count_caption(scene_from_id(row["image"]["id"]), row["text"]) for row in of]
        return metrics.summarise(counts, bootstrap)

    result: dict[str, Any] = {when: {mode: measured(of) for mode, of in modes.items()} for when, modes in rows.items()}
    return {**result, "scenes": len(next(iter(rows["after"].values())))}
