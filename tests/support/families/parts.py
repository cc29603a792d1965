"""Configurations of tiny towers and language models, and how a captioner is made of them."""

from __future__ import annotations

from typing import Any

import torch

from jsfree.models.loading import Captioner

SPREAD = 0.25
"""Standard deviation of random weights: large enough that a wrong position or mask changes captions."""
WIDTH, LAYERS, HEADS, KV_HEADS = 128, 2, 4, 2
HEAD_WIDTH = WIDTH // HEADS
"""vLLM decodes no narrower heads on CPUs than these."""
UNUSED = 5
"""Ids of the vocabulary without a token."""


def text_sizes(tokenizer: Any) -> dict[str, Any]:
    """Arguments of the configuration of any language model."""
    return {
        "vocab_size": len(tokenizer) + UNUSED,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
        "initializer_range": SPREAD,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def tower_sizes(image: int, patch: int) -> dict[str, Any]:
    """Arguments of the configuration of a CLIP or SigLIP tower."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image,
        "patch_size": patch,
        "initializer_range": SPREAD,
    }


def captioner_of(model_class: Any, config: Any, processor: Any) -> Captioner:
    """A captioner with random weights."""
    torch.manual_seed(0)
    model = model_class._from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "image_newline" in name:
                parameter.normal_(0.0, SPREAD)
    model.tie_weights()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return Captioner(model, processor)
