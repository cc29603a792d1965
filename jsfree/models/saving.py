"""Saves captioners in the format of their family's checkpoints on the hub.

A published folder contains safetensors in the hub's key layout, the configurations, processor, tokenizer and chat
template, so ``from_pretrained`` and vLLM can load it. The template writes the start token (``start_token_template``).
``checksums.json`` allows every node to verify its copy.
``save_pretrained`` of transformers 5 is not used for the weights: it omits the level ``vision_model.`` of LLaVA's
vision tower, which other libraries expect.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jsfree.errors import StorageError
from jsfree.models.contents import write_checksums
from jsfree.models.families.registry import family_of
from jsfree.models.prompts import start_token_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

TOKENIZER = "tokenizer_config.json"
HEAD = "lm_head.weight"
LOAD_OPTIONS = ("is_local", "local_files_only")


def _complete_config(model: PreTrainedModel) -> Any:
    """Return the configuration with ``architectures`` and ``dtype``.

    A model created from a configuration has neither; vLLM would then not recognize it as a generative model.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [family_of(config).model_class]
    config.dtype = model.dtype
    return config


def _remove_load_options(file: Path) -> None:
    """Remove from the tokenizer's settings the options of ``from_pretrained`` that transformers adds."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in LOAD_OPTIONS}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def publish_captioner(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    directory: str | Path,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a captioner to ``directory``. Equal weights give identical files.

    Args:
        state_dict: weights gathered from a sharded engine; None: the weights of the model.

    Raises:
        StorageError: the folder cannot be written.
    """
    from huggingface_hub import save_torch_state_dict

    weights = dict(model.state_dict() if state_dict is None else state_dict)
    if model.config.tie_word_embeddings:
        weights.pop(HEAD, None)  # it is the matrix of embeddings
    # Copies, because the tensors of a sharded engine are views of one buffer, which safetensors refuses.
    copies = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
    published = family_of(model.config).hub_weights(model, copies)
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(published, directory, max_shard_size=max_shard_size)
        _complete_config(model).save_pretrained(directory)
        model.generation_config.save_pretrained(directory)
        published_processor = copy.copy(processor)
        published_processor.chat_template = start_token_template(processor)
        published_processor.save_pretrained(directory)
        _remove_load_options(Path(directory) / TOKENIZER)
        write_checksums(Path(directory))
    except OSError as error:
        raise StorageError(f"the model cannot be written to {directory}: {error.strerror or error}") from error
