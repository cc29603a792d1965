"""Whether stages fit their devices, and which settings would."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from jsfree.checks.findings import Finding, fails, note, ok
from jsfree.config import RunConfig, Train
from jsfree.sizing import footprint, memory
from jsfree.sizing.memory import Lengths, Memory
from jsfree.sizing.shapes import LlavaShape

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


@dataclass(frozen=True)
class Room:
    """What a replica of stage 1 may take: bytes in all, and what else lies there."""

    bytes: int
    beside: int
    among: str
    """Of what it is a part."""


def check_generation(config: RunConfig, shape: LlavaShape, lengths: Lengths, device: Device) -> Iterator[Finding]:
    """Stage 1 against the device that each replica gets."""
    asked, room = config.generate.slots, generation_room(config, device)
    slots = memory.slots_that_fit(shape, config, lengths, room.bytes, room.beside)
    whole = memory.generation(shape, config, lengths)
    told = f"{_told(whole)} for {asked} captions together on {room.bytes / GB:.0f} GB ({room.among})"
    if not slots and device.is_gpu:
        yield fails(
            AREA,
            "generate",
            told + ": not even one caption fits beside the weights",
            "take a larger GPU, or several (captioner.device_map: auto, with generate.resources.gpus: 2 or more)",
        )
    elif not slots:
        yield fails(AREA, "generate", told + ": not even one fits", "lower generate.resources.replicas, or take a GPU")
    elif slots < asked:
        yield note(AREA, "generate", f"{told}: {slots} fit, which is what a replica will take", "nothing need be done")
    else:
        yield ok(AREA, "generate", told)
    if device.is_gpu and 0 < config.generate.resources.gpus < 1 and config.generate.kv_cache_gib is None:
        yield note(
            AREA,
            "generate.kv_cache_gib",
            "replicas share a GPU, and each takes nine tenths of what it finds free there",
            "set generate.kv_cache_gib to each one's share",
        )


def generation_room(config: RunConfig, device: Device) -> Room:
    """What a replica of stage 1 may take of its device."""
    resources = config.generate.resources
    beside = CLIP_BYTES if config.score.with_generation and device.is_gpu else 0
    if config.captioner.device_map == "auto":
        return Room(int(device.memory * resources.gpus), beside, f"{resources.gpus:g} x {device.name}")
    together = resources.replicas if not device.is_gpu else int(1 / resources.gpus + 1e-6) if resources.gpus < 1 else 1
    return Room(
        device.memory // together, beside, f"one of {together} on {device.name}" if together > 1 else device.name
    )


def check_training(config: RunConfig, shape: LlavaShape, lengths: Lengths, device: Device) -> Iterator[Finding]:
    """Stage 4 against the device that each worker gets."""
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
    for _, train in memory.alternatives(config.train, on_cpu=not device.is_gpu):
        if memory.training(shape, train, dtype, lengths, on_cpu=not device.is_gpu).total <= room:
            changed = train.model_dump(mode="json")
            usual = config.train.model_dump(mode="json")
            keys = ("zero_stage", "gradient_checkpointing", "offload", "lora", "trained_layers")
            told = [f"train.{key}={_value(changed[key])}" for key in keys if changed[key] != usual[key]]
            offloaded = _offloaded(train, shape)
            return " ".join(f"--set {each}" for each in told) + (f" ({offloaded})" if offloaded else "")
    return ""


def _offloaded(train: Train, shape: LlavaShape) -> str:
    """What offloading takes of the nodes' memory, in words."""
    if train.offload == "none":
        return ""
    trained = memory.parameters(shape, train.trained_layers, train.lora).trained
    return f"takes {footprint.OPTIMIZER_BYTES * trained / GB:.0f} GB of the nodes' memory"


def _value(value: object) -> str:
    """As ``--set`` takes it."""
    if isinstance(value, dict):
        return f"'{{rank: {value['rank']}, alpha: {value['alpha']}}}'"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _told(of: Memory) -> str:
    parts = {**of.held, **{name: size for name, size in of.passing.items() if size == max(of.passing.values())}}
    return f"{of.total / GB:.3g} GB ({', '.join(f'{name} {size / GB:.3g}' for name, size in parts.items())})"
