"""DPO of a published shape with random weights on one GPU: tokens a second, the share of its arithmetic, and memory."""

from __future__ import annotations

import argparse
import os
import random
import time
from dataclasses import replace
from typing import Any

import torch
from measuring import publish
from random_llava import RandomCaptioner, published

from jsfree import config
from jsfree.config import RunConfig
from jsfree.dpo.batching import PairBatch, collate
from jsfree.dpo.engine import start_engine
from jsfree.dpo.loss import Lengths, PairLogps, dpo
from jsfree.schemas import SelectedPair

GIB = 2**30
DENSE_BF16 = {"h200": 989e12, "h100": 989e12, "a100": 312e12, "l40s": 362e12}
"""Multiplications and additions a second, without sparsity, from the makers' data sheets."""
CAPTION = 130
STEPS = 8


def on_gpu(arguments: argparse.Namespace) -> None:
    """Measure on the GPU at hand and publish; ``dpo.one_worker`` has been entered."""
    captioner = published(arguments.preset, "cuda", torch.bfloat16)
    train: dict[str, Any] = {"gradient_checkpointing": True, "pairs_per_worker": 4, "pairs_per_step": 4}
    if arguments.lora:
        train["lora"] = {}
    settings = config.build(
        {"captioner": {"dtype": "bfloat16"}, "train": {**train, "resources": {"replicas": 1}}}, where="benchmark"
    )
    figures = measured(captioner, settings, STEPS)
    name = torch.cuda.get_device_name().lower()
    peak = next((value for key, value in DENSE_BF16.items() if key in name), None)
    figures["mfu"] = figures["flops_a_second"] / peak if peak else None
    figures["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    publish(f"dpo-{arguments.preset}{'-lora' if arguments.lora else ''}", {}, figures, [os.getloadavg()[0]])


def measured(captioner: RandomCaptioner, settings: RunConfig, steps: int) -> dict[str, Any]:
    """Steps of training; the first is not counted."""
    engine = start_engine(captioner, settings, 1)
    batch = drawn(captioner, settings).to(captioner.device, captioner.model.dtype)
    chosen, rejected = torch.tensor(batch.lengths, device=captioner.device).chunk(2)
    started = 0.0
    for number in range(steps + 1):
        if number == 1:
            _wait(captioner.device)
            started = time.perf_counter()
        logps = engine(batch)
        reference = PairLogps(logps.chosen.detach(), logps.rejected.detach())
        engine.backward(dpo(logps, reference, Lengths(chosen, rejected), settings.train).loss.mean())
        engine.step()
    _wait(captioner.device)
    seconds = (time.perf_counter() - started) / steps
    positions = int((batch.segments_BL < 3).sum())
    weights = sum(weight.numel() for weight in captioner.model.model.language_model.parameters())
    # Forward 2 a weight and position, backward 2 for activations and 2 for gradients of trained weights; what gradient
    # checkpointing computes again does not count, nor do attention, head and vision tower.
    each = 4 if settings.train.lora is not None else 6
    return {
        "pairs_per_second": len(batch.ids_BL) / seconds,
        "positions_per_second": positions / seconds,
        "completion_tokens_per_second": len(batch.targets_T) / seconds,
        "positions_a_pair": positions / len(batch.ids_BL),
        "flops_a_second": each * weights * positions / seconds,
    }


def drawn(captioner: RandomCaptioner, settings: RunConfig) -> PairBatch:
    """A micro batch of random captions of about ``CAPTION`` tokens, and random images."""
    words = random.Random(0)
    count = settings.train.pairs_per_worker
    captions = [
        {
            "token_ids": [
                words.randrange(10, captioner.vocabulary) for _ in range(words.randint(CAPTION - 20, CAPTION + 20))
            ]
        }
        for _ in range(2 * count)
    ]
    pairs: list[SelectedPair] = [
        {"sample_id": str(at), "prompt": "", "chosen": captions[2 * at], "rejected": captions[2 * at + 1]}  # type: ignore[misc,typeddict-item]
        for at in range(count)
    ]
    rows = collate(pairs, captioner, settings.source, [torch.zeros(1)] * count)
    return replace(rows, features=None, pixels=torch.stack(captioner.random_pixels(count)))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
