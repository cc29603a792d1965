"""Speed and memory of DPO with LLaVA-1.5-7B's shape in bfloat16: LoRA, or the last four layers."""

from __future__ import annotations

from typing import Any

import torch
from dpo_pairs import random_batch
from random_llava import of_shape

from gpu import device
from gpu.device import GIB
from gpu.report import Report
from gpu.scale import Scale
from gpu.training import Forward, train_step, two_forwards
from jsfree import config
from jsfree.dpo.batching import PADDING, PairBatch
from jsfree.dpo.engine import adamw, enable_gradient_checkpointing, prepare_policy
from jsfree.dpo.policy import FLEX
from jsfree.sizing import memory, rates
from jsfree.sizing.memory import Lengths
from jsfree.sizing.workload import workload_of


def measure_lora(scale: Scale, report: Report) -> None:
    """Step ``dpo-lora``."""
    policy = Policy(scale, {"lora": {}}, report)
    policy.run_all()


def measure_layers(scale: Scale, report: Report) -> None:
    """Step ``dpo-layers``."""
    policy = Policy(scale, {"trained_layers": 4}, report)
    policy.run_all()


def measure_flex(scale: Scale, report: Report) -> None:
    """Step ``dpo-flex``: flex attention in place of a mask, LoRA."""
    if scale.device == "cpu":
        report.skip("flex attention", "computes gradients on GPUs only")
        return
    policy = Policy(scale, {"lora": {}}, report)
    policy.run("mask", policy.model)
    policy.captioner.model.set_attn_implementation({"text_config": FLEX})
    policy.run("flex", policy.model)


class Policy:
    """A captioner with random weights, and the measurements of its training."""

    def __init__(self, scale: Scale, trained: dict[str, Any], report: Report) -> None:
        self.scale, self.report = scale, report
        train = {**trained, "pairs_per_step": scale.pairs, "pairs_per_worker": scale.pairs}
        train["resources"] = {"replicas": 1, "gpus": 1}
        self.settings = config.build({"captioner": {"dtype": "bfloat16"}, "train": train}, where="benchmark")
        self.captioner = of_shape(scale.shape_7b, torch.bfloat16, scale.device)
        self.batch: PairBatch = random_batch(self.captioner, scale.pairs, scale.caption).to(
            self.captioner.device, torch.bfloat16
        )
        language = self.captioner.model.model.language_model
        self.weights = sum(weight.numel() for weight in language.parameters())
        self.model = prepare_policy(self.captioner, self.settings)
        # Without the adapters' own arithmetic.
        self.trained = sum(
            weight.numel()
            for name, weight in language.named_parameters()
            if weight.requires_grad and "lora_" not in name
        )
        self.optimizer = adamw(self.model, self.settings, fused=scale.device == "cuda")
        self.positions = int((self.batch.segments_BL != PADDING).sum())
        report.figure("positions_a_pair", self.positions / scale.pairs)

    def run_all(self) -> None:
        """Measure shared prefix and two forwards, with and without gradient checkpointing."""
        shared, plain = self.model, two_forwards(self.model)
        self._compare("shared prefix", shared, "two forwards", plain)
        enable_gradient_checkpointing(self.captioner.model)
        self._compare("shared prefix, checkpointed", shared, "two forwards, checkpointed", plain)

    def _compare(self, name: str, forward: Forward, other_name: str, other: Forward) -> None:
        ours, theirs = self.run(name, forward), self.run(other_name, other)
        if ours and theirs:
            times = ours / theirs
            self.report.figure(f"{name} over {other_name}", times)
            self.report.headline(f"{times:.2f}x {other_name}")

    def run(self, name: str, forward: Forward) -> float | None:
        """Pairs per second of one way to compute a step; None if it failed."""
        self.optimizer.zero_grad()
        device.release(self.scale)
        with self.report.part(name):
            return self._run(name, forward)
        return None

    def _run(self, name: str, forward: Forward) -> float:
        scale, train = self.scale, self.settings.train
        started = device.now(scale)
        train_step(forward, self.optimizer, self.batch, None, train)  # kernels, and the optimizer's state
        first = device.now(scale) - started
        self.optimizer.zero_grad()
        peak, started = device.Peak(scale), device.now(scale)
        for _ in range(scale.train_steps):
            train_step(forward, self.optimizer, self.batch, None, train)
        seconds = (device.now(scale) - started) / scale.train_steps
        found = {
            "pairs_per_second": scale.pairs / seconds,
            "step_milliseconds": 1000 * seconds,
            "first_step_seconds": first,
        }
        headline = f"{name}: {found['pairs_per_second']:.1f} pairs/s"
        if forward is self.model:
            # Counts the positions of shared prefixes; two plain forwards compute more for the same pairs.
            found["flops_a_second"] = self._operations() / seconds
            found["mfu"] = found["flops_a_second"] / device.kind(scale).flops
            headline += f", MFU {100 * found['mfu']:.0f} %"
            self._predict(name, found["pairs_per_second"], peak)
        if peak.bytes is not None and peak.beyond is not None:
            found |= {"peak_gib": peak.bytes / GIB, "peak_beyond_state_gib": peak.beyond / GIB}
            headline += f", {found['peak_gib']:.0f} GiB"
        self.report.figure(name, found)
        self.report.headline(headline)
        return found["pairs_per_second"]

    def _operations(self) -> float:
        """Operations of a step: 2 per weight and position forward, 2 backward, 2 more if the weight is trained.

        Without attention, the vision tower and the recomputation of checkpointing.
        """
        return self.positions * (4 * self.weights + 2 * self.trained)

    def _predict(self, name: str, pairs_per_second: float, peak: device.Peak) -> None:
        """Compare preflight's activations and pairs per second.

        Weights and optimizer are not compared, since DeepSpeed's buffers and its float32 state are missing here.
        """
        checkpointed = self.captioner.model.is_gradient_checkpointing
        train = self.settings.train.model_copy(update={"gradient_checkpointing": checkpointed, "epochs": 1})
        settings, scale = self.settings.model_copy(update={"train": train}), self.scale
        prefix, lead = (len(self.captioner.prompt_ids("", image)) for image in (self.captioner.blank, None))
        lengths = Lengths(prefix, lead, scale.caption, scale.caption)
        if peak.beyond is not None:
            predicted = memory.training(scale.shape_7b, train, "bfloat16", lengths)
            self.report.predict(f"{name}: activations", predicted.transient["activations"], peak.beyond, "bytes")
        work = workload_of(settings, 1000)
        seconds = rates.train_seconds(settings, work, scale.shape_7b, lengths, device.kind(scale))
        # The prediction includes a reference pass, the measurement does not.
        self.report.predict(f"{name}: pairs, reference included", work.pairs / seconds, pairs_per_second, "pairs/s")
        if not checkpointed:
            # The operations as preflight counts them, without the reference pass.
            counted = (4 if train.lora is not None else 6) * memory.parameters(scale.shape_7b).total
            operations = counted * (prefix + 2 * scale.caption) * pairs_per_second
            self.report.figure("shares", {"training": operations / device.kind(scale).flops})
