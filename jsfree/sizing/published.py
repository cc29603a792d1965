"""Hyper-parameters of published checkpoints, so that a run can be planned without a network.

Sources: ``config.json`` of each repository. Image tokens and features are those of an image of 640 x 480 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsfree.sizing.shapes import PUBLISHED, CaptionerShape, shape_of

QWEN2_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
}


@dataclass(frozen=True)
class Published:
    """A checkpoint: its configuration, and the image tokens and tower's numbers of a typical image."""

    config: Mapping[str, Any]
    image_tokens: int
    feature_numbers: int


FAMILIES = {
    "Qwen/Qwen2.5-VL-7B-Instruct": Published(
        {
            "model_type": "qwen2_5_vl",
            "text_config": {
                **QWEN2_7B,
                "model_type": "qwen2_5_vl_text",
                "vocab_size": 152064,
                "max_position_embeddings": 128000,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            },
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
            },
        },
        image_tokens=391,
        feature_numbers=4 * 391 * 1280,
    ),
    "Qwen/Qwen3-VL-8B-Instruct": Published(
        {
            "model_type": "qwen3_vl",
            "text_config": {
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 151936,
                "max_position_embeddings": 262144,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": [24, 20, 20],
                    "mrope_interleaved": True,
                },
            },
            "vision_config": {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "out_hidden_size": 4096,
                "deepstack_visual_indexes": [8, 16, 24],
            },
        },
        image_tokens=300,
        feature_numbers=4 * 4 * 300 * 1152,
    ),
    "OpenGVLab/InternVL3-8B-hf": Published(
        {
            "model_type": "internvl",
            "text_config": {**QWEN2_7B, "vocab_size": 151674},
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": [448, 448],
                "patch_size": [14, 14],
                "attention_bias": True,
            },
            "tie_word_embeddings": False,
        },
        image_tokens=256,
        feature_numbers=1024 * 1024,
    ),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": Published(
        {
            "model_type": "llava_onevision",
            "text_config": {**QWEN2_7B, "vocab_size": 152000},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 26,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
                "vision_use_head": False,
            },
            "tie_word_embeddings": False,
        },
        image_tokens=2929,
        feature_numbers=5 * 729 * 1152,
    ),
}


def published_shape(ref: str) -> CaptionerShape | None:
    """The shape of a published checkpoint; None if it is not in the tables."""
    if ref in PUBLISHED:
        return PUBLISHED[ref]
    if ref not in FAMILIES:
        return None
    from transformers import AutoConfig

    known = FAMILIES[ref]
    config = AutoConfig.for_model(**known.config)
    return shape_of(config, known.image_tokens, known.feature_numbers)
