"""The shapes of captioners, and what can be computed from them without weights.

A ``CaptionerShape`` has the names and shapes of all tensors in the hub's files, which give the number of parameters,
and the sizes that memory and time depend on. ``LlavaShape`` computes them for LLaVA-1.5, of which ``PUBLISHED`` holds
the hyper-parameters; ``ModelShape`` reads them from a model that transformers builds on the meta device.
``jsfree.sizing.footprint`` computes what training takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from jsfree.models.families.base import Family
from jsfree.models.families.registry import FAMILIES, family_of

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

    head_width: int | None = None
    """Width of an attention head; None if the heads share the hidden size."""

    @property
    def head(self) -> int:
        """Width of an attention head."""
        return self.head_width or self.hidden // self.heads

    @property
    def kv(self) -> int:
        """Width of a layer's keys, and of its values."""
        return self.head * (self.kv_heads or self.heads)


class CaptionerShape(Protocol):
    """What memory and time depend on."""

    @property
    def family(self) -> Family:
        """The family of the model."""

    @property
    def language(self) -> TransformerShape:
        """The language model."""

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""

    @property
    def context(self) -> int:
        """Most positions."""

    @property
    def image_tokens(self) -> int:
        """Image tokens of a typical image."""

    @property
    def feature_numbers(self) -> int:
        """Numbers that the vision tower returns for a typical image."""

    @property
    def tensors(self) -> Mapping[str, Shape]:
        """Names and shapes of all tensors of a checkpoint, in the hub's key layout."""


@dataclass(frozen=True)
class ModelShape:
    """The shape of a model of any supported family."""

    family: Family
    language: TransformerShape
    vocabulary: int
    context: int
    image_tokens: int
    feature_numbers: int
    tensors: Mapping[str, Shape]


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
    def family(self) -> Family:
        """The family of the model."""
        return FAMILIES["llava"]

    @property
    def image_tokens(self) -> int:
        """Visual tokens of an image: its patches, without the class token (strategy ``default``)."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def feature_numbers(self) -> int:
        """Numbers that the vision tower returns for an image."""
        return self.image_tokens * self.vision.hidden

    @property
    def tensors(self) -> Mapping[str, Shape]:
        """Names and shapes of all tensors of a checkpoint, in the key layout of the llava-hf repositories."""
        return dict([*_vision_tensors(self), *_projector_tensors(self), *_language_tensors(self)])


PUBLISHED = {
    "llava-hf/llava-1.5-7b-hf": LlavaShape(TransformerShape(hidden=4096, layers=32, heads=32, intermediate=11008)),
    "llava-hf/llava-1.5-13b-hf": LlavaShape(TransformerShape(hidden=5120, layers=40, heads=40, intermediate=13824)),
}
IMAGE_TOKEN_ID, PAD_TOKEN_ID = 32000, 32001


def tensors(shape: CaptionerShape) -> Mapping[str, Shape]:
    """Names and shapes of all tensors of a checkpoint, in the hub's key layout."""
    return shape.tensors


def parameters(shape: CaptionerShape) -> int:
    """Number of parameters."""
    return sum(prod(tensor) for tensor in shape.tensors.values())


def kv_bytes_per_token(shape: CaptionerShape, bytes_per_number: int = BF16) -> int:
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


def shape_of(config: Any, image_tokens: int = 0, feature_numbers: int = 0) -> CaptionerShape:
    """The shape of a checkpoint with a given configuration.

    Args:
        image_tokens: of a typical image, for models whose configuration does not tell.
        feature_numbers: as ``CaptionerShape.feature_numbers``, likewise.

    Raises:
        ModelError: it is of no supported family.
    """
    family, language = family_of(config), config.get_text_config()
    if config.model_type == "llava":
        vision = config.vision_config
        if vision.model_type == "clip_vision_model" and language.model_type in ("llama", "mistral"):
            return LlavaShape(
                language=_stack(language, language.num_key_value_heads),
                vision=_stack(vision, None),
                vocabulary=language.vocab_size,
                context=language.max_position_embeddings,
                image_size=vision.image_size,
                patch_size=vision.patch_size,
            )
    return ModelShape(
        family,
        _stack(language, language.num_key_value_heads),
        language.vocab_size,
        language.max_position_embeddings,
        image_tokens,
        feature_numbers,
        _model_tensors(family, config),
    )


def _model_tensors(family: Family, config: Any) -> Mapping[str, Shape]:
    """Names and shapes of the tensors that a model of transformers would write, without allocating them."""
    import torch
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, family.model_class)._from_config(config)
    weights = dict(model.state_dict())
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return {name: tuple(tensor.shape) for name, tensor in family.hub_weights(model, weights).items()}


def _stack(config: Any, kv_heads: int | None) -> TransformerShape:
    width = getattr(config, "head_dim", None)
    return TransformerShape(
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
        None if kv_heads == config.num_attention_heads else kv_heads,
        None if width in (None, config.hidden_size // config.num_attention_heads) else width,
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
