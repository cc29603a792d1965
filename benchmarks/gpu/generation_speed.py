"""Speed of decoding with LLaVA-1.5's shapes in bfloat16, against the memory bandwidth and transformers."""

from __future__ import annotations

import logging
import statistics
from dataclasses import dataclass, field
from typing import Any

import torch
from generation import bytes_of, requests
from generation_peers import RATIOS, Peers
from measuring import ratio
from random_llava import RandomCaptioner, of_shape

from gpu import device
from gpu.device import GIB
from gpu.report import Report
from gpu.scale import Scale
from jsfree import config
from jsfree.config import Compiling, RunConfig
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.memory import kv_size
from jsfree.decoding.workload import Workload
from jsfree.sizing import memory, rates
from jsfree.sizing.memory import Lengths
from jsfree.sizing.shapes import LlavaShape
from jsfree.sizing.workload import workload_of

H0 = (0.0, RATIOS[1])
"""The default ratios: one of the two captions uses the conditional path alone."""
SINGLE = (0.0, 0.0)
TARGETS = {"transformers_generate_single_path": 1.4, "transformers_cfg_batched": 2.5, "dual_over_single_cost": 1.25}


@dataclass(frozen=True)
class Case:
    """One way to decode; ``slots`` None means as many as fit."""

    slots: int | None
    ratios: tuple[float, float]
    compiling: Compiling

    @property
    def name(self) -> str:
        """Name in the result."""
        paths = {H0: "h 0 and 0.6", SINGLE: "single path"}.get(self.ratios, "h 0.2 and 0.6")
        return f"{self.slots or 'most'} slots, {paths}, {self.compiling}"


@dataclass
class Timing:
    """Times of decoding."""

    seconds: float = 0.0
    tokens: int = 0
    first: float = 0.0
    """Seconds of the first step, which prefills the images."""
    steps: list[float] = field(default_factory=list)
    """Seconds of the steps in which no caption started."""


def measure_7b(scale: Scale, report: Report) -> None:
    """Step ``generation-7b``."""
    few, many = scale.slots
    fast: Compiling = "cuda_graphs" if scale.device == "cuda" else "none"
    model = Model(scale, scale.shape_7b, report)
    first = Case(many, H0, fast)
    cases = [first, Case(many, H0, "none"), Case(many, SINGLE, fast), Case(many, RATIOS, fast)]
    timings = {case: model.run(case) for case in dict.fromkeys(cases)}
    model.report_ratios(timings, Case(many, RATIOS, fast), Case(many, SINGLE, fast))
    for case in dict.fromkeys(
        [Case(None, H0, fast), Case(few, H0, fast), Case(few, H0, "none"), Case(None, H0, "none")]
    ):
        model.run(case)


def measure_13b(scale: Scale, report: Report) -> None:
    """Step ``generation-13b``."""
    many = scale.slots[1]
    fast: Compiling = "cuda_graphs" if scale.device == "cuda" else "none"
    model = Model(scale, scale.shape_13b, report)
    cases = [Case(many, H0, fast), Case(None, H0, fast), Case(many, H0, "none"), Case(many, SINGLE, fast)]
    for case in dict.fromkeys(cases):
        model.run(case)


class Model:
    """A captioner of a given shape with random weights, and its measurements."""

    def __init__(self, scale: Scale, shape: LlavaShape, report: Report) -> None:
        self.scale, self.shape, self.report = scale, shape, report
        self.captioner: RandomCaptioner = of_shape(shape, torch.bfloat16, scale.device)
        self.bandwidth = device.bandwidth(scale)
        model = self.captioner.model
        self.read_a_step = bytes_of(model.model.language_model.layers) + bytes_of(model.lm_head)
        report.figure("weights_gib", bytes_of(model) / GIB)
        report.figure("weights_read_a_step_gib", self.read_a_step / GIB)
        report.figure("copy_bytes_a_second", self.bandwidth)

    def run(self, case: Case) -> Timing | None:
        """Measure a case; None if it failed."""
        device.release(self.scale)
        with self.report.part(case.name):
            return self._run(case)
        return None

    def _run(self, case: Case) -> Timing:
        scale = self.scale
        share = sum(ratio > 0 for ratio in case.ratios) / len(case.ratios)
        peak = device.Peak(scale)
        with Warnings() as warnings:
            engine = DualPathEngine(
                self.captioner,
                Workload(case.slots or scale.most_slots, dual_path_share=share, prompts=1),
                compiling=case.compiling,
            )
            warm = _decode(engine, self._requests(2, case), scale)  # kernels, memory, graphs
            assert engine.layout is not None
            images = engine.layout.slots if case.slots else -(-engine.layout.slots // 2)
            engine.reset_counts()
            timing = _decode(engine, self._requests(images, case), scale)
        found = {"warm_up_seconds": warm.seconds, **self._found(engine, timing)}
        if peak.bytes is not None:
            found |= {"peak_gib": peak.bytes / GIB, "reserved_gib": torch.cuda.max_memory_reserved() / GIB}
        if warnings.messages:
            found["warnings"] = "; ".join(warnings.messages)
        self.report.figure(case.name, found)
        self.report.headline(f"{case.name}: {found['tokens_per_second']:.0f} tokens/s")
        if case.ratios == H0:
            self._predict(case, engine, found["captions_per_second"], peak)
        return timing

    def _found(self, engine: DualPathEngine, timing: Timing) -> dict[str, Any]:
        layout = engine.layout
        assert layout is not None
        found = {
            "captions_per_second": timing.tokens / self.scale.caption / timing.seconds,
            "tokens_per_second": timing.tokens / timing.seconds,
            "slots": layout.slots,
            "slot_utilisation": engine.utilisation,
            "kv_gib": layout.bytes / GIB,
            "kv_mib_a_caption": layout.bytes / 2**20 / layout.slots,
        }
        if timing.steps:
            step, needed = statistics.median(timing.steps), self._bytes_a_step(engine)
            found |= {"step_milliseconds": 1000 * step, "share_of_roofline": needed / self.bandwidth / step}
            # The first step prefills the images of all slots, which have two captions each.
            prefill = (timing.first - step) / -(-layout.slots // 2)
            if prefill > 0:
                found["prefill_milliseconds_an_image"] = 1000 * prefill
                found["shares"] = self._shares(step, needed, prefill)
        return found

    def _shares(self, step: float, needed: float, prefill: float) -> dict[str, float]:
        """Achieved shares of the data sheet's bandwidth and arithmetic, which ``jsfree.sizing.rates`` assumes."""
        sheet = device.kind(self.scale)
        operations = 2 * memory.parameters(self.shape).total * self._lengths().prefix
        return {"bandwidth": needed / sheet.bandwidth / step, "prefill": operations / sheet.flops / prefill}

    def _requests(self, images: int, case: Case) -> list[Any]:
        return requests(self.captioner, images, [self.scale.caption] * (2 * images), case.ratios)

    def _bytes_a_step(self, engine: DualPathEngine) -> float:
        """Bytes that a step must read: weights, prefixes, and half of the rows' own tokens, their mean."""
        assert engine.layout is not None
        cache = engine.layout.cache
        tokens = cache.image_prefixes * cache.image_tokens + cache.text_prefixes * cache.text_tokens
        tokens += cache.rows * self.scale.caption / 2
        return self.read_a_step + tokens * kv_size(self.captioner).token_bytes

    def _predict(self, case: Case, engine: DualPathEngine, captions: float, peak: device.Peak) -> None:
        """Compare preflight's memory and rates with the measurements."""
        assert engine.layout is not None
        slots, settings, lengths = engine.layout.slots, self._settings(case), self._lengths()
        held = memory.generation(self.shape, settings, lengths, slots)
        name = case.name
        self.report.predict(f"{name}: keys and values", held.held["keys and values"], engine.layout.bytes, "bytes")
        if peak.bytes is not None:
            self.report.predict(f"{name}: memory of tensors", held.total, peak.bytes, "bytes")
            if case.slots is None:
                total = torch.cuda.get_device_properties(0).total_memory
                fit = memory.slots_that_fit(self.shape, settings, lengths, total)
                self.report.predict(f"{name}: slots that fit", fit, slots, "captions")
        images = 1000
        seconds = rates.caption_seconds(
            settings, workload_of(settings, images), self.shape, lengths, device.kind(self.scale), slots
        )
        self.report.predict(f"{name}: captions", 2 * images / seconds, captions, "captions/s")

    def _settings(self, case: Case) -> RunConfig:
        generate = {
            "slots": case.slots or self.scale.most_slots,
            "decoding": {"max_new_tokens": self.scale.caption},
            "resources": {"replicas": 1, "gpus": 1},
        }
        return config.build({"captioner": {"dtype": "bfloat16"}, "generate": generate}, where="benchmark")

    def _lengths(self) -> Lengths:
        prefix, lead = (len(self.captioner.prompt_ids("", image)) for image in (self.captioner.blank, None))
        return Lengths(prefix, lead, self.scale.caption, self.scale.caption)

    def report_ratios(self, timings: dict[Case, Timing | None], dual: Case, single: Case) -> None:
        """Report the cost of the second path, and the engine against transformers' ``generate`` and guidance."""
        ratios: dict[str, Any] = {}
        ours, alone = timings.get(dual), timings.get(single)
        if ours and alone:
            key = "dual_over_single_cost"
            ratios[key] = ratio([ours.seconds / ours.tokens], [alone.seconds / alone.tokens], TARGETS[key])
            self.report.figure("ratios", ratios)
            self.report.headline(f"second path {ratios[key]['median']:.2f}x")
        device.release(self.scale)
        # Undo ``attention.install``.
        self.captioner.model.model.language_model.set_attn_implementation("sdpa")
        with self.report.part("transformers"):
            peers = Peers(self.captioner, max(1, self.scale.slots[1] // len(RATIOS)), self.scale.caption)
            for key, work in (
                ("transformers_generate_single_path", peers.single_path),
                ("transformers_cfg_batched", peers.guidance_batched),
            ):
                started = device.now(self.scale)
                tokens = work()
                seconds = device.now(self.scale) - started
                self.report.figure(key, {"tokens_per_second": tokens / seconds})
                if ours:
                    ratios[key] = ratio([seconds / tokens], [ours.seconds / ours.tokens], TARGETS[key])
                    self.report.figure("ratios", ratios)
                    self.report.headline(f"{ratios[key]['median']:.1f}x {key}")


def _decode(engine: DualPathEngine, requests: list[Any], scale: Scale) -> Timing:
    """Decode requests, timing each step."""
    timing = Timing()
    for request in requests:
        engine.submit(request)
    started = before = device.now(scale)
    while engine.active:
        step = engine.step()
        after = device.now(scale)
        if not timing.tokens:
            timing.first = after - before
        elif not step.finished:
            timing.steps.append(after - before)
        timing.tokens += len(step.drawn)
        before = after
    timing.seconds = before - started
    return timing


class Warnings(logging.Handler):
    """Collects the engine's warnings within its context, such as running out of memory."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Record a warning."""
        self.messages.append(record.getMessage())

    def __enter__(self) -> Warnings:
        logging.getLogger("jsfree.decoding").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("jsfree.decoding").removeHandler(self)
