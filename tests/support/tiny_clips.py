"""Tiny CLIP models with random weights: open_clip's own classes, configured like the kinds of model that people use.

``write(folder, kind)`` writes a model in the layout of open_clip's ``local-dir:``.
"""

import json
from pathlib import Path
from typing import Any

import torch

WORDS = [
    *("a", "an", "the", "is", "there", "are", "of", "in", "on", "at", "and", "with", "one", "two", "three"),
    *("red", "blue", "brown", "dog", "cat", "ball", "cup", "table", "horse", "man", "men", "hat", "large", "small"),
    *("very", "left", "right", "picture", "runs", "so", "number"),
]

CAUSAL = {"context_length": 24, "vocab_size": 49408}
NOT_CAUSAL = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
OWN_TOKENIZER = {"hf_tokenizer_name": "in-this-folder", "vocab_size": 128}
KINDS: dict[str, dict[str, Any]] = {
    "openai": {"text": CAUSAL, "quick_gelu": True},
    "laion": {"text": CAUSAL},
    "metaclip2": {"text": {**OWN_TOKENIZER, "context_length": 20, "pool_type": "eos", "eos_id": 2}},
    "eva02": {"text": CAUSAL, "custom_text": True},
    "pe-core": {"text": {**CAUSAL, "context_length": 32}, "custom_text": True},
    "mobileclip2-s": {"text": {**CAUSAL, "no_causal_mask": True}, "custom_text": True},
    "siglip": {
        "text": {**OWN_TOKENIZER, **NOT_CAUSAL, "context_length": 16, "tokenizer_kwargs": {"clean": "canonicalize"}},
        "custom_text": True,
        "init_logit_bias": -10,
    },
    "siglip2": {
        "text": {
            **OWN_TOKENIZER,
            **NOT_CAUSAL,
            "context_length": 64,
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "act_kwargs": {"approximate": "tanh"},
            "norm_kwargs": {"eps": 1e-6},
        },
        "custom_text": True,
        "init_logit_bias": -10,
    },
    "clipa": {
        "text": {
            **OWN_TOKENIZER,
            **NOT_CAUSAL,
            "context_length": 18,
            "tokenizer_kwargs": {"clean": "lower", "strip_sep_token": True},
        },
        "custom_text": True,
    },
    "openvision": {
        "text": {**OWN_TOKENIZER, **NOT_CAUSAL, "context_length": 18, "tokenizer_mode": "clips"},
        "custom_text": True,
    },
}
"""Kinds of model by the name of an example."""
CUT = {"openai", "laion", "metaclip2", "eva02", "pe-core"}
"""Kinds whose padding may be cut."""


def write(folder: Path, kind: str = "laion", seed: int = 0, **text: Any) -> Path:
    """Write a model of a kind into a new folder; ``text`` overrides settings of its text tower."""
    import open_clip
    from safetensors.torch import save_file

    own = {**KINDS[kind]}
    settings = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"width": 32, "heads": 2, "layers": 2, **own.pop("text"), **text},
        **own,
    }
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    model_class = open_clip.CustomTextCLIP if own.pop("custom_text", False) else open_clip.CLIP
    parts = {name: value for name, value in settings.items() if name != "custom_text"}
    torch.manual_seed(seed)
    weights = _enlarged(model_class(**parts).state_dict())
    save_file(weights, folder / "open_clip_model.safetensors")
    if "hf_tokenizer_name" in settings["text_cfg"]:
        _tokenizer(kind).save_pretrained(folder)
    return folder


def _enlarged(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights whose embeddings are large enough for padding and position to matter in the first digits of a score."""
    large = ("token_embedding", "positional_embedding")
    return {
        name: (value * (30 if any(part in name for part in large) else 1)).contiguous()
        for name, value in weights.items()
    }


def _tokenizer(kind: str) -> Any:
    """A tokenizer of words with the special tokens and padding of a kind."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {
        "metaclip2": ["<s>", "<pad>", "</s>", "<unk>"],
        "siglip": ["<unk>", "</s>"],
        "siglip2": ["<pad>", "<eos>", "<unk>"],
        "clipa": ["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
        "openvision": ["[PAD]", "[CLS]", "[BOS]", "[EOS]", "[UNK]"],
    }[kind]
    letters = [*"abcdefghijklmnopqrstuvwxyz", *"0123456789.,;"]
    ids = {word: number for number, word in enumerate(dict.fromkeys([*special, *WORDS, *letters]))}
    unknown = next(word for word in special if word.lower() in ("<unk>", "[unk]"))
    core = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    template = {
        "metaclip2": "<s> $A </s>",
        "siglip": "$A </s>",
        "siglip2": "$A <eos>",
        "clipa": "[CLS] $A [SEP]",
    }.get(kind)
    if template is not None:
        named = [(word, ids[word]) for word in special if word in template]
        core.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    roles = {
        "metaclip2": {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"},
        "siglip": {"pad_token": "</s>", "eos_token": "</s>"},
        "siglip2": {"pad_token": "<pad>", "eos_token": "<eos>"},
        "clipa": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        "openvision": {"pad_token": "[PAD]", "cls_token": "[CLS]", "bos_token": "[BOS]", "eos_token": "[EOS]"},
    }[kind]
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token=unknown, **roles)
