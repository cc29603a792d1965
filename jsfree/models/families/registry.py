"""The supported families by ``model_type`` of their configuration, and what of a configuration they cannot have."""

from __future__ import annotations

from typing import Any

from jsfree.errors import ModelError
from jsfree.models.families.anyres import LlavaNext, LlavaOnevision
from jsfree.models.families.base import Family
from jsfree.models.families.gemma3 import Gemma3
from jsfree.models.families.idefics3 import Idefics3, SmolVLM
from jsfree.models.families.internvl import InternVL
from jsfree.models.families.llava import Llava
from jsfree.models.families.qwen_vl import Qwen2VL, Qwen3VL, Qwen25VL
from jsfree.models.families.refusals import REMEDY, require_type

FAMILIES: dict[str, Family] = {
    "llava": Llava(),
    "internvl": InternVL(),
    "llava_next": LlavaNext(),
    "llava_onevision": LlavaOnevision(),
    "qwen2_vl": Qwen2VL(),
    "qwen2_5_vl": Qwen25VL(),
    "qwen3_vl": Qwen3VL(),
    "gemma3": Gemma3(),
    "idefics3": Idefics3(),
    "smolvlm": SmolVLM(),
}
EXACT_LAYERS = {"full_attention", "sliding_attention"}
TEXT_MODELS_WITH_SINKS = ("gpt_oss",)


def family_of(config: Any) -> Family:
    """The family of a configuration of transformers.

    Raises:
        ModelError: as ``require_type`` and ``require_exact``, or its vision tower is of another type.
    """
    require_type(config.model_type, "the model")
    require_exact(config)
    family = FAMILIES[config.model_type]
    if family.tower_types and config.vision_config.model_type not in family.tower_types:
        raise ModelError(
            f"the model has a vision tower of type {config.vision_config.model_type!r}, which jsfree does not"
            f" support in models of type {config.model_type!r}",
            f"use a model whose tower is of type {' or '.join(family.tower_types)}",
        )
    return family


def require_exact(config: Any) -> None:
    """Check that every layer of the language model is one that the engine evaluates exactly.

    Raises:
        ModelError: it has layers without keys and values, attention sinks, or capped or scaled logits.
    """
    text = config.get_text_config()
    others = sorted(set(getattr(text, "layer_types", None) or ()) - EXACT_LAYERS)
    if others:
        raise ModelError(
            f"the language model {text.model_type!r} has layers of kind {', '.join(others)}, whose state the"
            " engine cannot share among captions",
            REMEDY,
        )
    if text.model_type in TEXT_MODELS_WITH_SINKS:
        raise ModelError(f"the language model {text.model_type!r} has attention sinks", REMEDY)
    for name in ("final_logit_softcapping", "attn_logit_softcapping", "logits_scaling"):
        if getattr(text, name, None) not in (None, 1, 1.0):
            raise ModelError(f"the language model {text.model_type!r} changes its logits or scores ({name})", REMEDY)


def window_of(config: Any) -> int | None:
    """Tokens that the layers with a sliding window attend to; None if all layers attend to all tokens."""
    text = config.get_text_config()
    window: int | None = getattr(text, "sliding_window", None)
    layers = getattr(text, "layer_types", None)
    return None if layers is not None and "sliding_attention" not in layers else window
