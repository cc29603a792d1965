"""Bytes of activations in a forward and backward pass of training.

Counted tensor by tensor from what autograd saves in a Llama layer (transformers 5.19) and in the completion head. With
h the hidden size, k the width of the keys, i the intermediate size and b the bytes of ``captioner.dtype``, per
position and layer:

- both norms: 2 (4 h + 2 b h), since they compute in float32; b h less each if their weights are frozen;
- attention: b (3 h + 2 k) for queries, keys, values, its output, and the input of the output projection;
- the gated MLP: 4 b i.

``benchmarks/memory.py`` compares the sum with the memory of a process. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jsfree.config import Lora
from jsfree.dpo.policy import HEAD_CHUNK
from jsfree.sizing.shapes import CaptionerShape

FLOAT32 = 4


@dataclass(frozen=True)
class Rows:
    """A micro batch of pairs, one row [prompt with image | chosen | rejected] each."""

    count: int
    positions: int
    """Of the longest row."""
    completion: int
    """Tokens of both captions, on average."""

    @property
    def tokens(self) -> int:
        """Positions of all rows, padding included."""
        return self.count * self.positions


def activation_bytes(
    shape: CaptionerShape, rows: Rows, width: int, *, checkpointing: bool, lora: Lora | None = None
) -> int:
    """Most bytes of activations at a time: in the head's backward pass, or when it enters the last layer.

    All layers save activations, whichever are trained, because the projector below them is trained.

    Args:
        width: bytes of a number in the captioner's dtype.
        checkpointing: save only the inputs of layers, and recompute one layer at a time.
    """
    language = shape.language
    layer = rows.tokens * _layer(shape, width, lora)
    inputs = rows.tokens * width * language.hidden
    held = language.layers * inputs + layer if checkpointing else language.layers * layer
    backward = rows.tokens * width * (language.hidden + 3 * language.intermediate)
    head = head_bytes(shape, rows, width) + (0 if lora else width * shape.vocabulary * language.hidden)
    mask = rows.count * rows.positions**2 * width
    return held + max(backward, head) + 2 * inputs + mask


def _layer(shape: CaptionerShape, width: int, lora: Lora | None) -> int:
    """Bytes of one position in one layer."""
    hidden, keys, intermediate = shape.language.hidden, shape.language.kv, shape.language.intermediate
    norms = 2 * (FLOAT32 * hidden + (1 if lora else 2) * width * hidden)
    attention = width * (3 * hidden + 2 * keys) + FLOAT32 * shape.language.heads
    adapters = 0 if lora is None else width * lora.rank * len(_layer_targets(lora.targets))
    return norms + attention + 4 * width * intermediate + adapters


def _layer_targets(targets: Sequence[str]) -> list[str]:
    return [target for target in targets if target.endswith("_proj")]


def head_bytes(shape: CaptionerShape, rows: Rows, width: int) -> int:
    """Bytes of the head's backward pass: log-probabilities in float32, their gradients, and those of the logits."""
    chunk = min(HEAD_CHUNK, rows.count * rows.completion)
    return chunk * shape.vocabulary * (3 * FLOAT32 + (width if width < FLOAT32 else 0))
