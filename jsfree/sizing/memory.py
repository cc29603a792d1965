"""What generation, scoring and training take on a device, predicted from shapes alone. Pure.

``benchmarks/memory.py`` compares the predictions with what processes really take on CPUs.
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
from jsfree.sizing.shapes import LlavaShape

CUDA_BYTES = 1_500_000_000
"""Context, kernels and what torch's allocator cannot use again; an estimate."""
ADAM_BUFFERS = 3
"""Float32 numbers a trained parameter that a step of torch's AdamW works with where it is not fused (CPUs): a gradient,
and two of its own."""
BUCKET, LIVE = 500_000_000, 1_000_000_000
"""Numbers that DeepSpeed 0.19.8 reduces together, and that ZeRO-3 leaves gathered, by default."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of what a captioner reads and writes."""

    prefix: int
    """Image and prompt."""
    lead: int
    """The prompt without the image."""
    caption: int
    """A caption, on average."""
    most: int
    """The longest that is allowed."""

    def rows(self, count: int) -> Rows:
        """A micro batch of pairs."""
        return Rows(count, self.prefix + 2 * self.caption, 2 * self.caption)


@dataclass(frozen=True)
class Memory:
    """Bytes on a device, by what they are for; those in ``passing`` never come together."""

    held: dict[str, int]
    passing: dict[str, int]

    @property
    def total(self) -> int:
        """The most at a time."""
        return sum(self.held.values()) + max(self.passing.values(), default=0)


def parameters(shape: LlavaShape, trained_layers: int | None = None, lora: Lora | None = None) -> Parameters:
    """Numbers of parameters of a captioner."""
    return footprint.parameters_of(shapes.tensors(shape), trained_layers, lora)


def keys_of(shape: LlavaShape, dtype: str) -> KvSize:
    """What a token's keys and values take."""
    heads = shape.language.kv_heads or shape.language.heads
    token = shapes.kv_bytes_per_token(shape, BYTES[dtype])
    return KvSize(token, shape.language.heads // heads)


def generation(shape: LlavaShape, config: RunConfig, lengths: Lengths, slots: int | None = None) -> Memory:
    """What a replica of stage 1 takes with so many captions together, without CLIP beside it."""
    dtype = config.captioner.dtype
    need = Requirement(lengths.prefix, lengths.lead, lengths.most)
    workload = Workload.for_pairs(config.generate)
    workload = replace(workload, slots=slots or workload.slots)
    layout = workload.layout(keys_of(shape, dtype), need, float("inf"))
    rows = layout.slots + layout.second_rows
    return Memory(
        {"weights": BYTES[dtype] * parameters(shape).total, "keys and values": layout.bytes},
        {"prefill": _prefill(shape, lengths, dtype), "a step": _step(shape, layout.cache.tokens, rows, dtype)},
    )


def _prefill(shape: LlavaShape, lengths: Lengths, dtype: str) -> int:
    """An image and its prompt: keys and values before they are stored, and what a layer makes on its way."""
    each, language = BYTES[dtype], shape.language
    layer = lengths.prefix * (each * (2 * language.hidden + 3 * language.intermediate) + FLOAT32 * language.hidden)
    return lengths.prefix * keys_of(shape, dtype).token_bytes + layer


def _step(shape: LlavaShape, tokens: int, rows: int, dtype: str) -> int:
    """Logits and both paths' probabilities in float32, and a layer's keys and values as attention takes them."""
    logits = rows * shape.vocabulary * (BYTES[dtype] + 3 * FLOAT32)
    return logits + tokens * keys_of(shape, dtype).token_bytes // shape.language.layers


def slots_that_fit(shape: LlavaShape, config: RunConfig, lengths: Lengths, memory: int, beside: int = 0) -> int:
    """Captions that a device of so many bytes decodes together, at most ``generate.slots``; 0 if not even one.

    Args:
        beside: bytes that something else takes there, such as CLIP.
    """
    empty = generation(shape, config, lengths, slots=1)
    free = memory - beside - CUDA_BYTES - empty.held["weights"] - max(empty.passing.values())
    given = config.generate.kv_cache_gib
    budget = GPU_SHARE * free if given is None else min(free, given * GIB)
    need = Requirement(lengths.prefix, lengths.lead, lengths.most)
    try:
        return Workload.for_pairs(config.generate).layout(keys_of(shape, config.captioner.dtype), need, budget).slots
    except DeviceError:
        return 0


def training(shape: LlavaShape, train: Train, dtype: str, lengths: Lengths, *, on_cpu: bool = False) -> Memory:
    """What a worker of stage 4 takes on its device, with captions of average length."""
    counted = parameters(shape, train.trained_layers, train.lora)
    workers = train.resources.replicas
    offload = "none" if on_cpu else train.offload  # on a CPU it is the same memory
    of = footprint.shares(counted, train.zero_stage, workers, dtype, offload)
    rows = lengths.rows(min(train.pairs_per_worker, train.pairs_per_step // workers))
    each = BYTES[dtype]
    activations = activation_bytes(shape, rows, each, checkpointing=train.gradient_checkpointing, lora=train.lora)
    held = {"weights": of.weights, "optimizer": of.optimizer, "buckets": _buckets(counted, train, each, on_cpu)}
    # Gradients come while activations go; where they add up over micro batches, or have a buffer, they are held.
    buffered, added_up = train.zero_stage == 3, train.pairs_per_step > rows.count * workers
    if buffered or added_up:
        held["gradients"] = of.gradients
    step = of.step + (0 if "gradients" in held else of.gradients)
    if on_cpu:
        adam = ADAM_BUFFERS * FLOAT32 * counted.trained // workers
        step = max(step, adam - (of.gradients if added_up and not buffered else 0))
    loading = max(0, of.loading - sum(held.values()))
    return Memory(held, {"activations": activations, "optimizer step": step, "loading": loading})


def _buckets(counted: Parameters, train: Train, each: int, on_cpu: bool) -> int:
    """DeepSpeed's buffers: for gradients on their way between workers, and under ZeRO-3 for weights in use.

    A CPU's memory is taken as they are filled, and under ZeRO-1 and 2 they come late, when activations are gone.
    """
    if on_cpu:
        return each * min(BUCKET, counted.trained) if train.zero_stage == 3 else 0
    gathered = min(LIVE, counted.total) if train.zero_stage == 3 and train.resources.replicas > 1 else 0
    return each * (BUCKET + gathered)


def alternatives(train: Train, *, on_cpu: bool = False) -> Iterator[tuple[str, Train]]:
    """Other ways to train the same pairs, the fullest first: as configured (whole model or adapters) before the other,
    the device's memory before the nodes', more kept before computed again, fewer shards before more."""
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
