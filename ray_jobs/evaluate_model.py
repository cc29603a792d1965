"""Stage 5: captions of the models before and after, their CLIP scores, and the metrics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jsfree import schemas
from jsfree.captioning import CaptionWriter
from jsfree.clipscore import ClipScorer
from jsfree.config import RunConfig
from jsfree.evaluation import labelfree
from jsfree.images import evaluation_samples
from jsfree.model_card import write_card
from jsfree.schemas import ScoredCaptionRow
from jsfree.storage import Manifest
from jsfree.streaming import scan
from ray_jobs.generate_pairs import at_once, write_samples
from ray_jobs.rounds import Model, Round, StageRequest
from ray_jobs.shards import StageClass

MEASURED = ("image.id", "text", "finish", "sentences", "score")


def list_evaluation_samples(current: Round) -> Manifest:
    """Write the evaluation's samples, the same for every round."""
    config = current.config
    fingerprint = current.fingerprint(config.fingerprint("seed", "prompt", "source", "evaluate.source", "shard_rows"))
    return current.once(
        "evaluation",
        fingerprint,
        lambda: write_samples(evaluation_samples(config), current.stage("evaluation"), config.shard_rows),
    )


def caption_request(home: Round, model: Model, mode: str, samples: Manifest) -> StageRequest:
    """Captions of ``model`` in one mode, on the evaluation's samples in the first round's folder."""
    config = home.config
    decoding = config.evaluate.modes[mode].model_dump_json()
    return StageRequest(
        home.number,
        f"captions/{model.name}-{mode}",
        home.fingerprint(samples.fingerprint, model.fingerprint, config.fingerprint("seed", "captioner"), decoding),
        home.run.stage(1, "evaluation"),
        schemas.SAMPLES,
        schemas.CAPTIONS,
        CaptionWriter,
        {"config": config, "model_ref": model.ref, "model": model.name, "mode": mode},
        config.generate.resources,
        at_once=at_once(config),
    )


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
    from jsfree.miniworld import metrics
    from jsfree.miniworld.world import scene_from_id

    def measured(of: list[ScoredCaptionRow]) -> dict[str, Any]:
        counts = [metrics.count_caption(scene_from_id(row["image"]["id"]), row["text"]) for row in of]
        return metrics.summarise(counts, bootstrap)

    result: dict[str, Any] = {when: {mode: measured(of) for mode, of in modes.items()} for when, modes in rows.items()}
    return {**result, "scenes": len(next(iter(rows["after"].values())))}
