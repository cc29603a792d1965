"""The only place that saves a captioner for others.

A published folder is safetensors in the key layout of the llava-hf checkpoints on the hub, with config,
generation config, processor, tokenizer and chat template: ``from_pretrained`` and vLLM load it as it is. Its
``checksums.json`` lets every node tell that it fetched this very model, whole.
transformers 5 would write the vision tower without its ``vision_model.`` level, which loads nowhere else.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jsfree.errors import ModelError, StorageError
from jsfree.models.contents import write_checksums

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

ARCHITECTURE = "LlavaForConditionalGeneration"
TOKENIZER = "tokenizer_config.json"
ORIGIN = ("is_local", "local_files_only")
# Prefix in the module tree of transformers 5 -> prefix in the hub's files.
HUB_PREFIXES = {
    "model.vision_tower.vision_model.": "vision_tower.vision_model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


def hub_key(name: str) -> str:
    """Name of a parameter in the hub's key layout.

    Raises:
        ModelError: the parameter belongs to no part of a LLaVA model.
    """
    for prefix, published in HUB_PREFIXES.items():
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    raise ModelError(f"parameter {name!r} belongs to no known part of a LLaVA model", "cannot be published")


def _addressed(model: LlavaForConditionalGeneration) -> Any:
    """The configuration with what other engines choose their class and arithmetic by.

    A model that was built from a configuration has neither; vLLM then takes it for one that gives no text.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [ARCHITECTURE]
    config.dtype = model.dtype
    return config


def _forget_origin(file: Path) -> None:
    """Take out of a tokenizer's settings how this process came by it, which transformers writes among them."""
    told = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in told.items() if key not in ORIGIN}
    file.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def publish_captioner(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    directory: str | Path,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a captioner into ``directory``; the same weights give the same bytes.

    Args:
        state_dict: weights gathered by a sharded engine; the model's own when omitted.

    Raises:
        StorageError: the folder cannot be written.
    """
    from huggingface_hub import save_torch_state_dict

    weights = model.state_dict() if state_dict is None else state_dict
    # Copies: a sharded engine's tensors are views of one buffer, which safetensors refuses to store.
    published = {hub_key(name): tensor.detach().cpu().clone() for name, tensor in weights.items()}
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(published, directory, max_shard_size=max_shard_size)
        _addressed(model).save_pretrained(directory)
        model.generation_config.save_pretrained(directory)
        processor.save_pretrained(directory)
        _forget_origin(Path(directory) / TOKENIZER)
        write_checksums(Path(directory))
    except OSError as error:
        raise StorageError(f"the model cannot be written to {directory}: {error.strerror or error}") from error
