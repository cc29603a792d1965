"""Whether stages fit their devices, and which settings would."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from jsfree.config import RunConfig
from jsfree.preflight import memory
from jsfree.preflight.findings import Finding, fails, note, ok
from jsfree.preflight.memory import Lengths, Memory
from jsfree.shapes import LlavaShape

AREA = "memory"
GB = 1e9
CLIP_BYTES = 2_500_000_000
"""ViT-L/14 at 336 pixels in float32, with what 64 images take on their way; an estimate."""


@dataclass(frozen=True)
class Device:
    """What a replica computes on."""

    name: str
    memory: int
    """Bytes."""
    is_gpu: bool


def this_machine() -> Device:
    """The memory of this machine, which CPU replicas share."""
    return Device("this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), False)


def check_memory(config: RunConfig, shape: LlavaShape, lengths: Lengths, device: Device) -> Iterator[Finding]:
    """Generation, scoring and training against the device that each replica gets."""
    yield from _generation(config, shape, lengths, device)
    yield from _training(config, shape, lengths, device)


def _generation(config: RunConfig, shape: LlavaShape, lengths: Lengths, device: Device) -> Iterator[Finding]:
    resources, asked = config.generate.resources, config.generate.slots
    if config.captioner.device_map == "auto":
        share, among = device.memory * resources.gpus, f"{resources.gpus:g} x {device.name}"
    else:
        part = _part(resources.gpus, resources.replicas, device)
        share, among = device.memory * part, device.name if part == 1 else f"{part:.2g} of {device.name}"
    beside = CLIP_BYTES if config.score.with_generation and device.is_gpu else 0
    slots = memory.slots_that_fit(shape, config, lengths, int(share), beside)
    whole = memory.generation(shape, config, lengths)
    told = f"{_told(whole)} for {asked} captions together on {share / GB:.0f} GB ({among})"
    if not slots:
        yield fails(
            AREA,
            "generate",
            told + ": not even one caption fits beside the weights",
            "take a larger GPU, or several (captioner.device_map: auto, with generate.resources.gpus: 2 or more)",
        )
    elif slots < asked:
        yield note(AREA, "generate", f"{told}: {slots} fit, which is what a replica will take", "nothing need be done")
    else:
        yield ok(AREA, "generate", told)


def _part(gpus: float, replicas: int, device: Device) -> float:
    """The share of a device that a replica may fill."""
    if not device.is_gpu:
        return 1 / replicas
    return min(1.0, gpus) if gpus else 1.0


def _training(config: RunConfig, shape: LlavaShape, lengths: Lengths, device: Device) -> Iterator[Finding]:
    train, dtype = config.train, config.captioner.dtype
    room = training_room(config, device)
    needed = memory.training(shape, train, dtype, lengths, on_cpu=not device.is_gpu)
    told = f"{_told(needed)} of {room / GB:.0f} GB a worker ({device.name})"
    if needed.total <= room:
        yield ok(AREA, "train", told)
        return
    better = proposal(config, shape, lengths, device)
    remedy = f"this fits: {better}" if better else "nothing fits: use more workers (train.resources.replicas) or GPUs"
    # Weights, gradients and optimizer are sure to be there; activations depend on how long captions become.
    sure = sum(needed.held.values()) > room
    if sure or needed.total > 1.1 * room:
        yield fails(AREA, "train", told, remedy)
    else:
        yield note(AREA, "train", told + ": it may just not fit", remedy)


def training_room(config: RunConfig, device: Device) -> float:
    """Bytes that a training worker may take."""
    if device.is_gpu:
        return device.memory - memory.CUDA_BYTES
    return device.memory / config.train.resources.replicas


def proposal(config: RunConfig, shape: LlavaShape, lengths: Lengths, device: Device) -> str:
    """The fullest way to train that fits the device, as settings; empty where none does."""
    room, dtype = training_room(config, device), config.captioner.dtype
    for _, train in memory.alternatives(config.train):
        if memory.training(shape, train, dtype, lengths, on_cpu=not device.is_gpu).total <= room:
            changed = train.model_dump(mode="json")
            usual = config.train.model_dump(mode="json")
            keys = ("zero_stage", "gradient_checkpointing", "offload", "lora", "trained_layers")
            told = [f"train.{key}={_value(changed[key])}" for key in keys if changed[key] != usual[key]]
            return " ".join(f"--set {each}" for each in told)
    return ""


def _value(value: object) -> str:
    """As ``--set`` takes it."""
    if isinstance(value, dict):
        return f"'{{rank: {value['rank']}, alpha: {value['alpha']}}}'"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _told(of: Memory) -> str:
    parts = {**of.held, **{name: size for name, size in of.passing.items() if size == max(of.passing.values())}}
    return f"{of.total / GB:.3g} GB ({', '.join(f'{name} {size / GB:.3g}' for name, size in parts.items())})"
