"""What a forward and a backward pass of training take beside weights, gradients and optimizer, in bytes.

Counted tensor by tensor from what autograd keeps of a Llama layer (transformers 5.19) and of the completion head, with
h the width, k that of keys, i that between, b the bytes of ``captioner.dtype``, per position and layer:

- both norms: 2 (4 h + 2 b h), since they compute in float32; b h less each where their weights are frozen;
- attention: b (3 h + 2 k) for queries, keys, values, the result, and the result as the last product takes it;
- the gated product: 4 b i.

``benchmarks/memory.py`` compares the sum with what a process really takes. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jsfree.config import Lora
from jsfree.dpo.policy import HEAD_CHUNK
from jsfree.sizing.shapes import LlavaShape

FLOAT32 = 4


@dataclass(frozen=True)
class Rows:
    """A micro batch of pairs: [prompt with image | chosen | rejected] in a row each."""

    count: int
    positions: int
    """Of the longest row."""
    completion: int
    """Tokens of both captions, on average."""

    @property
    def tokens(self) -> int:
        """Positions of all rows, padding included."""
        return self.count * self.positions


def activation_bytes(shape: LlavaShape, rows: Rows, each: int, *, checkpointing: bool, lora: Lora | None = None) -> int:
    """The most that activations take at a time: when the backward pass comes from the head, or enters the last layer.

    All layers keep theirs, whichever are trained: the projector is, and it lies below them.

    Args:
        each: bytes of a number in the captioner's dtype.
        checkpointing: only the layers' inputs are kept, and one layer is computed again.
    """
    language = shape.language
    layer = rows.tokens * _layer(shape, each, lora)
    inputs = rows.tokens * each * language.hidden
    held = language.layers * inputs + layer if checkpointing else language.layers * layer
    backward = rows.tokens * each * (language.hidden + 3 * language.intermediate)
    head = head_bytes(shape, rows, each) + (0 if lora else each * shape.vocabulary * language.hidden)
    mask = rows.count * rows.positions**2 * each
    return held + max(backward, head) + 2 * inputs + mask


def _layer(shape: LlavaShape, each: int, lora: Lora | None) -> int:
    """Of one position in one layer."""
    wide, keys, between = shape.language.hidden, shape.language.kv, shape.language.intermediate
    norms = 2 * (FLOAT32 * wide + (1 if lora else 2) * each * wide)
    attention = each * (3 * wide + 2 * keys) + FLOAT32 * shape.language.heads
    adapters = 0 if lora is None else each * lora.rank * len(_in_layers(lora.targets))
    return norms + attention + 4 * each * between + adapters


def _in_layers(targets: Sequence[str]) -> list[str]:
    return [target for target in targets if target.endswith("_proj")]


def head_bytes(shape: LlavaShape, rows: Rows, each: int) -> int:
    """A chunk of completion tokens on its way back: log-probabilities in float32, their gradients, and the logits'."""
    chunk = min(HEAD_CHUNK, rows.count * rows.completion)
    return chunk * shape.vocabulary * (3 * FLOAT32 + (each if each < FLOAT32 else 0))
