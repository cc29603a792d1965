"""A round in MiniWorld without Ray and DeepSpeed: pairs, scores, selection, DPO, and captions before and after."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch

from gpu.exact_decoding import CAPTIONER
from gpu.report import Report
from gpu.scale import Scale
from gpu.training import train_step
from jsfree import config
from jsfree.config import RunConfig
from jsfree.dpo.batching import collate, epoch_order, micro_batches, pair_length
from jsfree.dpo.engine import adamw, prepare_policy
from jsfree.dpo.loop import learning_rate
from jsfree.evaluation import miniworld as metrics
from jsfree.images.sources import evaluation_samples, training_samples
from jsfree.miniworld import world
from jsfree.models.loading import load_captioner
from jsfree.models.saving import publish_captioner
from jsfree.stages.captioning import CaptionWriter, PairGenerator
from jsfree.stages.pair_selection import select_pairs
from jsfree.stages.scoring import ClipScorer

MODE = "greedy"


def measure(scale: Scale, report: Report) -> None:
    """Step ``miniworld-round``."""
    settings = settings_of(scale)
    clock = Clock(report)
    with tempfile.TemporaryDirectory(prefix="round-") as folder:
        rows = PairGenerator(settings, CAPTIONER, 1, scale.device)(training_samples(settings, 1)).rows
        clock.lap("pairs", len(rows))
        scored = ClipScorer(settings, scale.device)(rows).rows
        clock.lap("scored", len(scored))
        selected = select_pairs(scored, settings.select, settings.seed).rows
        losses = train(settings, selected, folder, scale)
        clock.lap("trained", len(selected) * settings.train.epochs)
        before, after = (hallucination(settings, model, scale) for model in (CAPTIONER, folder))
        clock.lap("captions", 2 * scale.evaluated_images)
    report.figure("losses", {"first": losses[0], "last": losses[-1]})
    report.figure("hallucination", f"{before:.3f} before, {after:.3f} after")
    report.headline(f"loss {losses[0]:.3f} to {losses[-1]:.3f}, hallucination {before:.3f} to {after:.3f}")
    if scale.device == "cuda":
        report.check("responses with an absent object, after over before", after / before, 0.8)


class Clock:
    """Reports seconds and rows per second of successive parts."""

    def __init__(self, report: Report) -> None:
        self._report, self._last = report, time.perf_counter()

    def lap(self, name: str, rows: int) -> None:
        """Report the part since the last call."""
        seconds = time.perf_counter() - self._last
        self._report.figure(name, {"seconds": seconds, "rows_per_second": rows / seconds})
        self._last = time.perf_counter()


def settings_of(scale: Scale) -> RunConfig:
    """MiniWorld's defaults for one worker, with fewer images, more epochs and smaller steps."""
    size = min(32, scale.round_images // 4)
    train = {"pairs_per_step": size, "pairs_per_worker": size, "epochs": scale.round_epochs}
    train["resources"] = {"replicas": 1}
    few = {"select": {"first": 1, "last": 10, "keep_truncated": True}} if scale.round_images < 100 else {}
    made = {"source": {"count": scale.round_images}, "evaluate": {"source": {"count": scale.evaluated_images}}}
    generate = {"compile": "cuda_graphs" if scale.device == "cuda" else "none"}
    return config.build({**made, "generate": generate, "train": train, **few}, where="benchmark")


def train(settings: RunConfig, pairs: list[Any], folder: str, scale: Scale) -> list[float]:
    """DPO with the order, batches and learning rates of the training loop; publishes the model into ``folder``."""
    captioner = load_captioner(CAPTIONER, scale.device)
    model, size = prepare_policy(captioner, settings), settings.train.pairs_per_step
    optimizer = adamw(model, settings, fused=scale.device == "cuda")
    lengths = [pair_length(pair) for pair in pairs]
    steps = len(pairs) // size
    chosen = [
        micro
        for epoch in range(settings.train.epochs)
        for order in [epoch_order(len(pairs), settings.seed, epoch)]
        for step in range(steps)
        for micro in micro_batches(lengths, order[step * size : (step + 1) * size], size, rank=0, world=1)
    ]
    batches = [
        collate([pairs[at] for at in micro], captioner, settings.source).to(captioner.device, torch.float32)
        for micro in chosen
    ]
    with torch.no_grad():
        references = [model(batch) for batch in batches]
    losses = []
    for step, (batch, reference) in enumerate(zip(batches, references, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(batches), settings)
        losses.append(float(train_step(model, optimizer, batch, reference, settings.train)))
    weights = {name.removeprefix("llava."): tensor for name, tensor in model.state_dict().items()}
    publish_captioner(captioner.model, captioner.processor, folder, weights)
    return losses


def hallucination(settings: RunConfig, model: str, scale: Scale) -> float:
    """Share of a model's captions that mention an absent object."""
    writer = CaptionWriter(settings, model, "m", MODE, scale.device)
    rows = writer(evaluation_samples(settings)).rows
    counts = [metrics.count_caption(world.scene_from_id(row["image"]["id"]), row["text"]) for row in rows]
    return metrics.summarise(counts)["response_hallucination"]["value"]
