"""Speed of scoring captions with CLIP's ViT-L/14 at 336 pixels, random weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from scoring import scorer_of, sentences

from gpu import device
from gpu.device import GIB
from gpu.report import Report
from gpu.scale import Scale
from jsfree import config
from jsfree.sizing import rates
from jsfree.sizing.scorers import scorer_shape
from jsfree.stages.scoring import ClipScorer


def measure(scale: Scale, report: Report) -> None:
    """Step ``scoring``: float32, as in a run, and TF32, for comparison."""
    import open_clip

    model_config = scale.clip or open_clip.get_model_config("ViT-L-14-336")
    resources = {"resources": {"replicas": 1, "gpus": 1, "cpus": 16}}
    clip = {"ref": "ViT-L-14-336", "pretrained": "openai"}
    settings = config.build({"clip": clip, "score": resources}, where="benchmark")
    shape = scorer_shape(settings.clip)
    with tempfile.TemporaryDirectory(prefix="clip-") as folder:
        scorer = scorer_of(Path(folder), model_config, scale.device)
    side = model_config["vision_cfg"]["image_size"]
    pixels = list(torch.randn(scale.scored_images, 3, side, side))
    pairs = drawn_pairs(scale.scored_images)
    peak = device.Peak(scale)
    seconds = timed(scorer, pixels, pairs, "float32", scale, report)
    if peak.bytes is not None:
        report.predict("CLIP's memory", shape.bytes, peak.bytes, "bytes")
        report.figure("peak_gib", peak.bytes / GIB)
    predicted = rates.score_seconds(len(pairs), settings, device.kind(scale), settings.clip.scorers)
    report.predict("images with two captions", len(pairs) / predicted, len(pairs) / seconds, "images/s")
    operations = shape.pair_flops * len(pairs) / seconds
    report.figure("shares", {"clip": operations / device.kind(scale).flops})
    if scale.device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        timed(scorer, pixels, pairs, "tf32", scale, report)


def timed(
    scorer: ClipScorer, pixels: list[torch.Tensor], pairs: list[Any], name: str, scale: Scale, report: Report
) -> float:
    """Seconds for all images and both captions of each."""
    scorer.score(pairs[:2], scorer.embed(pixels[:2]))  # kernels
    started = device.now(scale)
    embedded = scorer.embed(pixels)
    seen = device.now(scale)
    output = scorer.score(pairs, embedded)
    done = device.now(scale)
    scored = sum(len(row[role]["sentences"]) for row in output.rows for role in ("low", "high"))
    images_a_second, sentences_a_second = len(pixels) / (seen - started), scored / (done - seen)
    report.figure(name, {"images_per_second": images_a_second, "sentences_per_second": sentences_a_second})
    report.headline(f"{name}: {images_a_second:.0f} images/s, {sentences_a_second:.0f} sentences/s")
    return done - started


def drawn_pairs(count: int) -> list[Any]:
    """Pairs of captions of about ten sentences, numbered so that all sentences are distinct."""
    said = sentences(2 * count)
    texts = [" ".join(f"{sentence[:-1]}, number {at}." for sentence in each) for at, each in enumerate(said)]
    return [
        {"sample_id": str(at), "low": {"text": texts[2 * at]}, "high": {"text": texts[2 * at + 1]}}
        for at in range(count)
    ]
