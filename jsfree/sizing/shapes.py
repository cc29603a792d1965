"""The shapes of LLaVA-1.5 models, and what can be computed from them without weights.

``PUBLISHED`` holds the hyper-parameters of the llava-hf checkpoints. A ``LlavaShape`` determines the names and shapes
of all tensors in the hub's files, the number of parameters, the visual tokens of an image and the KV cache's bytes per
token; ``jsfree.sizing.footprint`` computes what training takes. Pure functions; only ``llava_config`` and ``shape_of``
use transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from jsfree.errors import ModelError

if TYPE_CHECKING:
    from transformers import LlavaConfig

Shape = tuple[int, ...]
BF16 = 2
"""Bytes of a number."""


@dataclass(frozen=True)
class TransformerShape:
    """A stack of transformer layers."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    kv_heads: int | None = None
    """Heads of keys and values (grouped-query attention); None if they are as many as ``heads``, as in LLaVA-1.5."""

    @property
    def head(self) -> int:
        """Width of an attention head."""
        return self.hidden // self.heads

    @property
    def kv(self) -> int:
        """Width of a layer's keys, and of its values."""
        return self.head * (self.kv_heads or self.heads)


@dataclass(frozen=True)
class LlavaShape:
    """A CLIP vision tower, a projector of two layers, and a Llama language model."""

    language: TransformerShape
    vision: TransformerShape = TransformerShape(hidden=1024, layers=24, heads=16, intermediate=4096)
    vocabulary: int = 32064
    context: int = 4096
    image_size: int = 336
    patch_size: int = 14

    @property
    def image_tokens(self) -> int:
        """Visual tokens of an image: its patches, without the class token (strategy ``default``)."""
        return (self.image_size // self.patch_size) ** 2


PUBLISHED = {
    "llava-hf/llava-1.5-7b-hf": LlavaShape(TransformerShape(hidden=4096, layers=32, heads=32, intermediate=11008)),
    "llava-hf/llava-1.5-13b-hf": LlavaShape(TransformerShape(hidden=5120, layers=40, heads=40, intermediate=13824)),
}
IMAGE_TOKEN_ID, PAD_TOKEN_ID = 32000, 32001


def tensors(shape: LlavaShape) -> dict[str, Shape]:
    """Names and shapes of all tensors of a checkpoint, in the key layout of the llava-hf repositories."""
    return dict([*_vision_tensors(shape), *_projector_tensors(shape), *_language_tensors(shape)])


def parameters(shape: LlavaShape) -> int:
    """Number of parameters."""
    return sum(prod(tensor) for tensor in tensors(shape).values())


def kv_bytes_per_token(shape: LlavaShape, bytes_per_number: int = BF16) -> int:
    """Bytes of keys and values of one token, over all layers."""
    return 2 * shape.language.layers * shape.language.kv * bytes_per_number


def llava_config(shape: LlavaShape) -> LlavaConfig:
    """The transformers configuration of a shape."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        **_sizes(shape.vision), image_size=shape.image_size, patch_size=shape.patch_size, projection_dim=768
    )
    language = LlamaConfig(
        **_sizes(shape.language),
        num_key_value_heads=shape.language.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.context,
        rms_norm_eps=1e-5,
        pad_token_id=PAD_TOKEN_ID,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=IMAGE_TOKEN_ID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=shape.image_tokens,
        tie_word_embeddings=False,
    )


def shape_of(config: LlavaConfig) -> LlavaShape:
    """The shape of a checkpoint with a given configuration.

    Raises:
        ModelError: its parts are not a CLIP tower and a Llama (or Mistral) model.
    """
    language, vision = config.text_config, config.vision_config
    if vision.model_type != "clip_vision_model" or language.model_type not in ("llama", "mistral"):
        raise ModelError(
            f"a LLaVA model of {vision.model_type!r} and {language.model_type!r} is not of the LLaVA-1.5 family"
            " (clip_vision_model and llama), so its size cannot be computed",
            "use a LLaVA-1.5 checkpoint",
        )
    return LlavaShape(
        language=_stack(language, language.num_key_value_heads),
        vision=_stack(vision, None),
        vocabulary=language.vocab_size,
        context=language.max_position_embeddings,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
    )


def _stack(config: Any, kv_heads: int | None) -> TransformerShape:
    return TransformerShape(
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
        None if kv_heads == config.num_attention_heads else kv_heads,
    )


def _sizes(stack: TransformerShape) -> dict[str, int]:
    return {
        "hidden_size": stack.hidden,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "intermediate_size": stack.intermediate,
    }


def _linear(name: str, into: int, out: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _vision_tensors(shape: LlavaShape) -> Iterator[tuple[str, Shape]]:
    vision, root = shape.vision, "vision_tower.vision_model"
    hidden = vision.hidden
    yield f"{root}.embeddings.class_embedding", (hidden,)
    yield f"{root}.embeddings.patch_embedding.weight", (hidden, 3, shape.patch_size, shape.patch_size)
    yield f"{root}.embeddings.position_embedding.weight", (shape.image_tokens + 1, hidden)
    yield from _norm(f"{root}.pre_layrnorm", hidden)  # the spelling of the files
    for number in range(vision.layers):
        layer = f"{root}.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{part}", hidden, hidden)
        yield from _norm(f"{layer}.layer_norm1", hidden)
        yield from _linear(f"{layer}.mlp.fc1", hidden, vision.intermediate)
        yield from _linear(f"{layer}.mlp.fc2", vision.intermediate, hidden)
        yield from _norm(f"{layer}.layer_norm2", hidden)
    yield from _norm(f"{root}.post_layernorm", hidden)


def _projector_tensors(shape: LlavaShape) -> Iterator[tuple[str, Shape]]:
    yield from _linear("multi_modal_projector.linear_1", shape.vision.hidden, shape.language.hidden)
    yield from _linear("multi_modal_projector.linear_2", shape.language.hidden, shape.language.hidden)


def _language_tensors(shape: LlavaShape) -> Iterator[tuple[str, Shape]]:
    language, root = shape.language, "language_model.model"
    hidden, intermediate = language.hidden, language.intermediate
    yield f"{root}.embed_tokens.weight", (shape.vocabulary, hidden)
    for number in range(language.layers):
        layer = f"{root}.layers.{number}"
        for part, rows in (("q_proj", hidden), ("k_proj", language.kv), ("v_proj", language.kv), ("o_proj", hidden)):
            yield f"{layer}.self_attn.{part}.weight", (rows, hidden)
        yield f"{layer}.mlp.gate_proj.weight", (intermediate, hidden)
        yield f"{layer}.mlp.up_proj.weight", (intermediate, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, intermediate)
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
    yield f"{root}.norm.weight", (hidden,)
    yield "language_model.lm_head.weight", (shape.vocabulary, hidden)
