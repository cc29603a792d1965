"""LLaVA: a CLIP or SigLIP tower, whose patches a projector of two layers maps to image tokens (arXiv 2310.03744)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from jsfree.errors import ModelError
from jsfree.models.families.base import Family, Tensors

TOWERS_WITH_CLASS_TOKEN = ("clip_vision_model",)
TOWERS = (*TOWERS_WITH_CLASS_TOKEN, "siglip_vision_model")
HUB_PREFIXES = {
    "model.vision_tower.vision_model.": "vision_tower.vision_model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
"""Prefixes of parameters in transformers 5, and in checkpoints of llava-hf."""


class Llava(Family):
    """LLaVA-1.5 and its relatives, such as LLaVA-Interleave."""

    model_class = "LlavaForConditionalGeneration"
    processor_class = "LlavaProcessor"
    tower_types: ClassVar[tuple[str, ...]] = TOWERS
    pads_images: ClassVar[bool] = True

    def image_text(self, processor: Any, config: Any, outputs: Mapping[str, Any]) -> str:
        """One image token for each position of the tower that the projector reads.

        Counted from the tower, not by the processor: that of the first checkpoints does not know the patch size.
        """
        return str(processor.image_token) * visual_tokens(config)

    def hub_weights(self, model: Any, weights: Tensors) -> Tensors:
        return {hub_key(name): tensor for name, tensor in weights.items()}


def hub_key(name: str) -> str:
    """Convert the name of a parameter to the key layout of llava-hf.

    Raises:
        ModelError: the parameter does not belong to a LLaVA model.
    """
    for prefix, published in HUB_PREFIXES.items():
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    raise ModelError(f"parameter {name!r} is not a parameter of a LLaVA model", "publish a LLaVA model")


def visual_tokens(config: Any) -> int:
    """Number of image tokens: the tower's positions, without the class token with strategy ``default``.

    576 for LLaVA-1.5. SigLIP towers have no class token, and are read with strategy ``full``.
    """
    vision = config.vision_config
    positions = int(vision.image_size // vision.patch_size) ** 2
    if vision.model_type in TOWERS_WITH_CLASS_TOKEN:
        positions += 1
    return positions - 1 if config.vision_feature_select_strategy == "default" else positions
