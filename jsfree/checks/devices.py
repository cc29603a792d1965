"""Checks of the memory of stages on their devices, and settings that would fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from jsfree.checks.findings import Finding, fails, note, ok
from jsfree.config import RunConfig, Train
from jsfree.sizing import footprint, memory
from jsfree.sizing.memory import Lengths, Memory
from jsfree.sizing.scorers import scorer_shape
from jsfree.sizing.shapes import CaptionerShape

AREA = "memory"
GB = 1e9


@dataclass(frozen=True)
class Device:
    """The device of a replica; ``memory`` is in bytes."""

    name: str
    memory: int
    is_gpu: bool


def this_machine() -> Device:
    """This machine as a device, whose memory CPU replicas share."""
    return Device("this machine", psutil.virtual_memory().total, False)


@dataclass(frozen=True)
class Capacity:
    """Memory of a replica that decodes captions: bytes in all, bytes ``reserved`` for CLIP, and their device."""

    bytes: int
    reserved: int
    device: str


def check_generation(config: RunConfig, shape: CaptionerShape, lengths: Lengths, device: Device) -> Iterator[Finding]:
    """Compare the memory of decoding with the device of each replica, in the way of decoding that takes most."""
    wanted, capacity = config.generate.slots, generation_capacity(config, device)
    fitting = memory.fitting_slots(shape, config, lengths, capacity.bytes, capacity.reserved)
    slots = min(fitting.values())
    required = {
        each.section: memory.memory_of(shape, config, lengths, each) for each in memory.captionings(config, lengths)
    }
    largest = max(required, key=lambda section: required[section].total)
    place = f"{capacity.bytes / GB:.0f} GB ({capacity.device})"
    by = "" if largest == "generate" else f" by {largest}"
    found = f"{_described(required[largest])} for {wanted} captions together{by} on {place}"
    if not slots and device.is_gpu:
        yield fails(
            AREA,
            "generate",
            f"{found}: not even one caption fits in addition to the weights",
            "use a larger GPU, or several (captioner.device_map: auto, with generate.resources.gpus: 2 or more)",
        )
    elif not slots:
        yield fails(AREA, "generate", f"{found}: not even one fits", "lower generate.resources.replicas, or use a GPU")
    elif slots < wanted:
        yield note(AREA, "generate", f"{found}: only {slots} fit, so a replica decodes {slots} together")
    else:
        yield ok(AREA, "generate", found)
    if device.is_gpu and 0 < config.generate.resources.gpus < 1 and config.generate.kv_cache_gib is None:
        yield note(
            AREA,
            "generate.kv_cache_gib",
            "replicas share a GPU, and each takes nine tenths of its free memory",
            "set generate.kv_cache_gib to each one's share",
        )


def generation_capacity(config: RunConfig, device: Device) -> Capacity:
    """The memory of a replica of stage 1 on its device."""
    resources = config.generate.resources
    together = config.score.with_generation and device.is_gpu
    reserved = int(sum(scorer_shape(scorer).bytes for scorer in config.clip.scorers)) if together else 0
    if config.captioner.device_map == "auto":
        return Capacity(int(device.memory * resources.gpus), reserved, f"{resources.gpus:g} x {device.name}")
    sharing = resources.replicas if not device.is_gpu else int(1 / resources.gpus + 1e-6) if resources.gpus < 1 else 1
    name = f"one of {sharing} on {device.name}" if sharing > 1 else device.name
    return Capacity(device.memory // sharing, reserved, name)


def check_training(config: RunConfig, shape: CaptionerShape, lengths: Lengths, device: Device) -> Iterator[Finding]:
    """Compare the memory of stage 4 with the device of each worker."""
    train, dtype = config.train, config.captioner.dtype
    capacity = training_capacity(config, device)
    captions = len(config.trained_captions)
    required = memory.training(shape, train, dtype, lengths, captions=captions, on_cpu=not device.is_gpu)
    found = f"{_described(required)} of {capacity / GB:.0f} GB per worker ({device.name})"
    if required.total <= capacity:
        yield ok(AREA, "train", found)
        return
    settings = fitting_settings(config, shape, lengths, device)
    remedy = f"this fits: {settings}" if settings else "use more workers (train.resources.replicas) or GPUs"
    # Weights, gradients and optimizer are known exactly; activations depend on the length of captions.
    if sum(required.held.values()) > capacity or required.total > 1.1 * capacity:
        yield fails(AREA, "train", found, remedy)
    else:
        yield note(AREA, "train", f"{found}: it may not fit", remedy)


def training_capacity(config: RunConfig, device: Device) -> float:
    """Bytes of memory of a training worker."""
    if device.is_gpu:
        return device.memory - memory.CUDA_BYTES
    return device.memory / config.train.resources.replicas


def fitting_settings(config: RunConfig, shape: CaptionerShape, lengths: Lengths, device: Device) -> str:
    """The preferred way to train that fits the device, as ``--set`` options; empty if none fits."""
    capacity, dtype, captions = training_capacity(config, device), config.captioner.dtype, len(config.trained_captions)
    for _, train in memory.alternatives(config.train, on_cpu=not device.is_gpu):
        required = memory.training(shape, train, dtype, lengths, captions=captions, on_cpu=not device.is_gpu)
        if required.total <= capacity:
            changed = train.model_dump(mode="json")
            configured = config.train.model_dump(mode="json")
            keys = ("zero_stage", "gradient_checkpointing", "offload", "lora", "trained_layers")
            options = [f"--set train.{key}={_value(changed[key])}" for key in keys if changed[key] != configured[key]]
            offloaded = _offloaded(train, shape)
            return " ".join(options) + (f" ({offloaded})" if offloaded else "")
    return ""


def _offloaded(train: Train, shape: CaptionerShape) -> str:
    """Describe the nodes' memory that offloading takes."""
    if train.offload == "none":
        return ""
    trained = memory.parameters(shape, train.trained_layers, train.lora).trained
    return f"takes {footprint.OPTIMIZER_BYTES * trained / GB:.0f} GB of the nodes' memory"


def _value(value: object) -> str:
    """Format a value for ``--set``."""
    if isinstance(value, dict):
        return f"'{{rank: {value['rank']}, alpha: {value['alpha']}}}'"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _described(needed: Memory) -> str:
    """Describe memory by its total and its parts, of the transient ones only the largest."""
    largest = max(needed.transient, key=lambda name: needed.transient[name])
    parts = {**needed.held, largest: needed.transient[largest]}
    return f"{needed.total / GB:.3g} GB ({', '.join(f'{name} {size / GB:.3g}' for name, size in parts.items())})"
