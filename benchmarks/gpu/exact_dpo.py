"""Checks DPO on this device: shared prefixes against two plain forwards, the initial loss, and 20 steps."""

from __future__ import annotations

import time
from typing import Any

import torch

from gpu.exact_decoding import CAPTIONER
from gpu.report import Report
from gpu.scale import Scale
from gpu.training import Forward, Logps, loss_of, train_step, two_forwards
from jsfree import config
from jsfree.config import RunConfig
from jsfree.dpo.batching import PAIR, PairBatch, collate
from jsfree.dpo.engine import adamw, prepare_policy
from jsfree.dpo.loop import initial_loss_tolerance
from jsfree.dpo.loss import initial_loss
from jsfree.dpo.policy import FLEX, PairModel
from jsfree.images.sources import training_samples
from jsfree.models.loading import DTYPES, Captioner, load_captioner
from jsfree.stages.captioning import PairGenerator

STEPS = 20
SUMS, GRADIENTS, A_TOKEN = 1e-3, 1e-4, 0.01
"""Limits of differences: log-probabilities in float32, relative gradients, log-probabilities a token in bfloat16."""
ENDS_BELOW = 0.6


def measure(scale: Scale, report: Report) -> None:
    """Step ``exact-dpo``: attention with a mask."""
    _measure(scale, report, "sdpa")
    with report.part("training"):
        train(scale, report)


def measure_flex(scale: Scale, report: Report) -> None:
    """Step ``exact-flex``: flex attention, which is compiled at its first call."""
    if scale.device == "cpu":
        report.skip("flex attention", "computes gradients on GPUs only")
        return
    _measure(scale, report, FLEX)


def _measure(scale: Scale, report: Report, attention: str) -> None:
    rows = pairs(scale)
    for dtype in ("float32", "bfloat16"):
        with report.part(dtype):
            settings = settings_of(scale, dtype)
            captioner = load_captioner(CAPTIONER, scale.device, dtype)
            batch = collate(rows, captioner, settings.source).to(captioner.device, DTYPES[dtype])
            model = prepare_policy(captioner, settings)
            compare(model, batch, attention, settings, report)


def settings_of(scale: Scale, dtype: str = "float32") -> RunConfig:
    """A run of MiniWorld with a few images."""
    made = {"source": {"count": 4 * scale.exact_images}, "captioner": {"dtype": dtype}}
    return config.build(made, where="benchmark")


def pairs(scale: Scale) -> list[Any]:
    """Pairs of the captioner's own captions."""
    settings = settings_of(scale)
    generator = PairGenerator(settings, CAPTIONER, 1, scale.device)
    rows = generator(training_samples(settings, 1)).rows
    return [{**row, "chosen": row["low"], "rejected": row["high"]} for row in rows]


def compare(model: PairModel, batch: PairBatch, attention: str, settings: RunConfig, report: Report) -> None:
    """Compare log-probabilities and gradients of both ways, and check the initial loss."""
    name = f"{settings.captioner.dtype}, {attention}"
    expected, wanted = _with_gradients(two_forwards(model), model, batch, settings)
    model.llava.set_attn_implementation({"text_config": attention})
    started = time.perf_counter()
    found, gradients = _with_gradients(model, model, batch, settings)
    report.figure(f"{name}: seconds of the first forward and backward pass", time.perf_counter() - started)
    apart = torch.cat([found[role] - expected[role] for role in PAIR]).abs()
    if settings.captioner.dtype == "float32":
        report.check(f"{name}: log-probabilities from two forwards", float(apart.max()), SUMS)
        relative = max(float((gradients[key] - each).norm() / each.norm()) for key, each in wanted.items())
        report.check(f"{name}: gradients from two forwards, relative", relative, GRADIENTS)
    else:
        lengths = torch.tensor([length for role in PAIR for length in batch.lengths[role]], device=apart.device)
        report.check(f"{name}: log-probabilities from two forwards, a token", float((apart / lengths).max()), A_TOKEN)
    with torch.no_grad():
        reference = model(batch)
    loss = float(loss_of(model(batch), reference, batch, settings.train).detach())
    off = abs(loss - initial_loss(settings.train.beta, settings.train.loss))
    report.check(f"{name}: the first loss from ln 2", off, initial_loss_tolerance(settings))


def _with_gradients(
    forward: Forward, model: PairModel, batch: PairBatch, settings: RunConfig
) -> tuple[Logps, dict[str, torch.Tensor]]:
    model.zero_grad()
    logps = forward(batch)
    detached = {role: each.detach() for role, each in logps.items()}
    # Shifted by 1, so that the gradient is that of a pair with a margin, as later in training.
    reference = {**detached, "chosen": detached["chosen"] - 1}
    loss_of(logps, reference, batch, settings.train).backward()  # type: ignore[no-untyped-call]
    named = model.named_parameters()
    return detached, {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


def train(scale: Scale, report: Report) -> None:
    """Train on one batch, whose loss must fall."""
    settings = settings_of(scale)
    captioner: Captioner = load_captioner(CAPTIONER, scale.device)
    batch = collate(pairs(scale), captioner, settings.source).to(captioner.device, torch.float32)
    model = prepare_policy(captioner, settings)
    optimizer = adamw(model, settings, fused=scale.device == "cuda")
    with torch.no_grad():
        reference = model(batch)
    losses = [float(train_step(model, optimizer, batch, reference, settings.train)) for _ in range(STEPS)]
    report.check("float32: the loss after 20 steps", losses[-1], ENDS_BELOW)
    report.headline(f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps")
