"""Memory that generation and training take on a device, predicted from shapes. Pure functions.

``benchmarks/memory.py`` compares the predictions with the memory of processes on CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jsfree.config import Lora, RunConfig, Train
from jsfree.decoding.memory import GIB, GPU_SHARE, KvSize
from jsfree.decoding.workload import Requirement, Workload
from jsfree.errors import DeviceError
from jsfree.sizing import footprint, shapes
from jsfree.sizing.activations import FLOAT32, Rows, activation_bytes
from jsfree.sizing.footprint import BYTES, Parameters
from jsfree.sizing.shapes import CaptionerShape

CUDA_BYTES = 1_500_000_000
"""CUDA context, kernels, and fragmentation of torch's allocator; an estimate."""
ADAM_BUFFERS = 3
"""Float32 numbers per trained parameter in a step of torch's AdamW that is not fused (CPUs): the gradient and two
temporaries."""
BUCKET, LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed 0.19.8's defaults: numbers reduced together, and numbers that ZeRO-3 keeps gathered."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of prompts and captions, in tokens."""

    prefix: int
    """Image and prompt."""
    text_prefix: int
    """The prompt without the image."""
    caption: int
    """The average caption."""
    maximum: int
    """The longest caption allowed."""

    def rows(self, count: int, captions: int = 2) -> Rows:
        """A micro batch of pairs, of which training reads ``captions`` each."""
        return Rows(count, self.prefix + captions * self.caption, captions * self.caption)


@dataclass(frozen=True)
class Memory:
    """Bytes on a device by purpose: ``held`` throughout, and ``transient`` ones, one at a time."""

    held: dict[str, int]
    transient: dict[str, int]

    @property
    def total(self) -> int:
        """Most bytes at a time."""
        return sum(self.held.values()) + max(self.transient.values(), default=0)


def parameters(shape: CaptionerShape, trained_layers: int | None = None, lora: Lora | None = None) -> Parameters:
    """Count the parameters of a captioner."""
    return footprint.parameters_of(shapes.tensors(shape), shape.family, trained_layers, lora)


def keys_of(shape: CaptionerShape, dtype: str) -> KvSize:
    """The size of a token's keys and values."""
    heads = shape.language.kv_heads or shape.language.heads
    token = shapes.kv_bytes_per_token(shape, BYTES[dtype])
    return KvSize(token, shape.language.heads // heads)


@dataclass(frozen=True)
class Captioning:
    """A way in which a run decodes captions, named by its section of the settings; ``maximum`` is in tokens."""

    section: str
    workload: Workload
    maximum: int

    def requirement(self, lengths: Lengths) -> Requirement:
        """The tokens of its longest caption."""
        return Requirement(lengths.prefix, lengths.text_prefix, self.maximum)


def captionings(config: RunConfig, lengths: Lengths) -> list[Captioning]:
    """The ways in which a run decodes captions: that of pairs, unless they are imported, and the evaluation modes."""
    slots = config.generate.slots
    modes = [
        Captioning(
            f"evaluate.modes.{name}",
            Workload.for_captions(slots, mode.contrast, mode.views.count),
            mode.max_new_tokens,
        )
        for name, mode in config.evaluate.modes.items()
    ]
    return modes if config.imported is not None and modes else [_pairs(config, lengths), *modes]


def _pairs(config: RunConfig, lengths: Lengths) -> Captioning:
    return Captioning("generate", Workload.for_pairs(config.generate), lengths.maximum)


def generation(shape: CaptionerShape, config: RunConfig, lengths: Lengths, slots: int | None = None) -> Memory:
    """Memory of a replica of stage 1 that decodes ``slots`` captions of pairs together, without CLIP."""
    return memory_of(shape, config, lengths, _pairs(config, lengths), slots)


def memory_of(
    shape: CaptionerShape, config: RunConfig, lengths: Lengths, captioning: Captioning, slots: int | None = None
) -> Memory:
    """Memory of a replica that decodes ``slots`` captions together in one way, without CLIP."""
    dtype, workload = config.captioner.dtype, captioning.workload
    workload = replace(workload, slots=slots or workload.slots)
    layout = workload.layout(keys_of(shape, dtype), captioning.requirement(lengths), float("inf"))
    prefill = workload.views * _prefill(shape, lengths, dtype)
    return Memory(
        {"weights": BYTES[dtype] * parameters(shape).total, "keys and values": layout.bytes},
        {"prefill": prefill, "a step": _step(shape, layout.cache.tokens, layout.cache.rows, dtype)},
    )


def _prefill(shape: CaptionerShape, lengths: Lengths, dtype: str) -> int:
    """Bytes of prefilling a view of an image and its prompt: its keys and values, and a layer's activations."""
    width, language = BYTES[dtype], shape.language
    layer = lengths.prefix * (width * (2 * language.hidden + 3 * language.intermediate) + FLOAT32 * language.hidden)
    return lengths.prefix * keys_of(shape, dtype).token_bytes + layer


def _step(shape: CaptionerShape, tokens: int, rows: int, dtype: str) -> int:
    """Bytes of a decoding step: logits, both paths' probabilities in float32, and a layer's keys and values."""
    logits = rows * shape.vocabulary * (BYTES[dtype] + 3 * FLOAT32)
    return logits + tokens * keys_of(shape, dtype).token_bytes // shape.language.layers


def slots_that_fit(shape: CaptionerShape, config: RunConfig, lengths: Lengths, memory: int, reserved: int = 0) -> int:
    """Captions of pairs that a device with ``memory`` bytes decodes together, at most ``generate.slots``; 0 if none.

    Args:
        reserved: bytes that something else takes on the device, such as CLIP.
    """
    return _slots_of(shape, config, lengths, _pairs(config, lengths), memory - reserved)


def fitting_slots(
    shape: CaptionerShape, config: RunConfig, lengths: Lengths, memory: int, reserved: int = 0
) -> dict[str, int]:
    """``slots_that_fit`` for each way of decoding captions, by its section of the settings."""
    return {
        each.section: _slots_of(shape, config, lengths, each, memory - reserved)
        for each in captionings(config, lengths)
    }


def _slots_of(shape: CaptionerShape, config: RunConfig, lengths: Lengths, captioning: Captioning, memory: int) -> int:
    """Captions that ``memory`` bytes are enough for, at most ``generate.slots``; 0 if none fits."""
    empty = memory_of(shape, config, lengths, captioning, slots=1)
    free = memory - CUDA_BYTES - empty.held["weights"] - max(empty.transient.values())
    given = config.generate.kv_cache_gib
    budget = GPU_SHARE * free if given is None else min(free, given * GIB)
    try:
        return captioning.workload.layout(
            keys_of(shape, config.captioner.dtype), captioning.requirement(lengths), budget
        ).slots
    except DeviceError:
        return 0


def training(
    shape: CaptionerShape, train: Train, dtype: str, lengths: Lengths, *, captions: int = 2, on_cpu: bool = False
) -> Memory:
    """Memory of a worker of stage 4, with ``captions`` per pair of average length (``RunConfig.trained_captions``)."""
    counted = parameters(shape, train.trained_layers, train.lora)
    workers = train.resources.replicas
    offload = "none" if on_cpu else train.offload  # a CPU would offload to the same memory
    taken = footprint.training_bytes(counted, train.zero_stage, workers, dtype, offload)
    rows = lengths.rows(min(train.pairs_per_worker, train.pairs_per_step // workers), captions)
    width = BYTES[dtype]
    activations = activation_bytes(shape, rows, width, checkpointing=train.gradient_checkpointing, lora=train.lora)
    held = {"weights": taken.weights, "optimizer": taken.optimizer, "buckets": _buckets(counted, train, width, on_cpu)}
    # Gradients replace activations during the backward pass, unless they are accumulated or have a buffer.
    buffered, accumulated = train.zero_stage == 3, train.pairs_per_step > rows.count * workers
    if buffered or accumulated:
        held["gradients"] = taken.gradients
    step = taken.step + (0 if "gradients" in held else taken.gradients)
    if on_cpu:
        adam = ADAM_BUFFERS * FLOAT32 * counted.trained // workers
        step = max(step, adam - (taken.gradients if accumulated and not buffered else 0))
    loading = max(0, taken.loading - sum(held.values()))
    return Memory(held, {"activations": activations, "optimizer step": step, "loading": loading})


def _buckets(counted: Parameters, train: Train, width: int, on_cpu: bool) -> int:
    """Bytes of DeepSpeed's buffers: for gradients that workers exchange, and under ZeRO-3 for gathered weights.

    On a CPU, memory is only taken as they fill, which under ZeRO-1 and 2 happens after activations are freed.
    """
    if on_cpu:
        return width * min(BUCKET, counted.trained) if train.zero_stage == 3 else 0
    gathered = min(LIVE, counted.total) if train.zero_stage == 3 and train.resources.replicas > 1 else 0
    return width * (BUCKET + gathered)


def alternatives(train: Train, *, on_cpu: bool = False) -> Iterator[tuple[str, Train]]:
    """Alternative ways to train the same pairs, with their names, in order of preference.

    The configured kind (whole model or adapters) comes before the other, the device's memory before offloading,
    saved activations before recomputed ones, fewer shards before more.
    """
    kinds = (train.lora, None if train.lora else Lora())
    for lora in kinds:
        for offload in ("none",) if on_cpu else ("none", "optimizer", "all"):
            for checkpointing in (False, True):
                for stage in (1, 2, 3) if offload != "all" else (3,):
                    part = "full" if train.trained_layers is None else f"last {train.trained_layers} layers"
                    name = f"{'LoRA' if lora else part}, ZeRO-{stage}"
                    name += ", gradient checkpointing" if checkpointing else ""
                    name += f", offload {offload}" if offload != "none" else ""
                    changed = {
                        "lora": lora,
                        "offload": offload,
                        "gradient_checkpointing": checkpointing,
                        "zero_stage": stage,
                        "trained_layers": None if lora else train.trained_layers,
                    }
                    yield name, train.model_copy(update=changed)
