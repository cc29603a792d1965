"""Which models are supported, and why others are refused, by ``model_type``. Imports no heavy library.

A model that the engine cannot decode exactly is refused by name, before its weights are loaded or fetched.
"""

from __future__ import annotations

from jsfree.errors import ModelError

SUPPORTED = (
    "llava",
    "internvl",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "gemma3",
    "idefics3",
    "smolvlm",
)
"""The keys of ``registry.FAMILIES``."""
REMEDY = "use a model of a supported family (docs/models.md)"
LINEAR = (
    "most layers of its language model have a recurrent state instead of keys and values, which the engine cannot share"
    " among the captions of an image"
)
CONVOLUTION = "its language model has convolution layers, whose state the engine cannot share among captions"
REFUSED = {
    "mllama": "it reads images by cross-attention, in layers that its path without image skips",
    "phi4_multimodal": "it has other weights for prompts with an image than for prompts without one",
    "qwen3_5": LINEAR,
    "qwen3_5_moe": LINEAR,
    "minicpmv4_6": LINEAR,
    "lfm2_vl": CONVOLUTION,
    "gemma3n": "some of its layers reuse the keys and values of others, and its logits are capped",
    "gemma4": "some of its layers reuse the keys and values of others, and its logits are capped",
    "llama4": "its attention is in chunks, which a caption leaves",
    "paligemma": "its prompt attends in both directions also without an image",
}
"""Models that jsfree knows it cannot decode or train exactly, with the reason."""


def require_type(model_type: object, where: str) -> None:
    """Check that a model is of a supported family, by the ``model_type`` in its ``config.json``.

    Raises:
        ModelError: it is not; with the reason if it is known.
    """
    if model_type in SUPPORTED:
        return
    if model_type in REFUSED:
        raise ModelError(f"{where} is a model of type {model_type!r}: {REFUSED[str(model_type)]}", REMEDY)
    raise ModelError(
        f"{where} is a model of type {model_type!r}, with which jsfree has not been tested",
        f"use one of type {', '.join(SUPPORTED)} (docs/models.md), such as llava-hf/llava-1.5-13b-hf",
    )
