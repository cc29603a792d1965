"""LoRA through peft (arXiv 2106.09685): low-rank adapters on frozen weights, merged into them after training."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jsfree.config import Lora
from jsfree.errors import ConfigError
from jsfree.models.contents import CARD, write_checksums
from jsfree.models.families.base import TOWER, Family
from jsfree.models.families.registry import family_of
from jsfree.models.hub import HubModel

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

PREFIX = "base_model.model."
"""Prefix that peft adds to the parameter names of a wrapped model."""
HEAD = "lm_head"
"""Cannot have an adapter: training computes log-probabilities from its weight directly (``CompletionHead``)."""
SETTINGS = "adapter_config.json"
"""File name of peft's adapter configuration."""


def peft_config(settings: Lora, family: Family) -> LoraConfig:
    """peft's configuration. The vision tower is excluded, since its layers may have the same names."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,  # at step 0 the policy must equal the reference
        target_modules=list(settings.targets),
        exclude_modules=_tower_pattern(family),
    )


def _tower_pattern(family: Family) -> str:
    """Regular expression for the names of modules in the vision tower, without the projector."""
    tower, projector = ("|".join(map(re.escape, parts)) for parts in (family.tower, family.projector))
    return rf"(?!.*(?:{projector})).*(?:{tower}).*"


def add_adapters(model: PreTrainedModel, settings: Lora) -> None:
    """Insert adapters into a model in place; only they require gradients.

    Raises:
        ConfigError: a target names no linear layer of the language model or the projector.
    """
    from peft import inject_adapter_in_model

    family = family_of(model.config)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    available = {name.split(".")[-1] for name in linear if family.part_of(name) != TOWER and name != HEAD}
    for target in settings.targets:
        if target not in available:
            raise ConfigError(
                f"train.lora.targets: the captioner has no linear layer {target!r}",
                f"choose from {', '.join(sorted(available))}",
            )
    model.requires_grad_(False)
    inject_adapter_in_model(peft_config(settings, family), model)


def merge_adapters(
    weights: Mapping[str, torch.Tensor],
    model: PreTrainedModel,
    settings: Lora,
    adapter: Path,
    base: HubModel | None = None,
) -> dict[str, torch.Tensor]:
    """Merge trained adapters into the weights, and write the adapter alone as peft loads it.

    Args:
        weights: state dict of the model with adapters, unsharded.
        model: the model that training started from; changed in place.
        settings: the adapters' settings.
        adapter: folder for the adapter.
        base: the start model's repository and revision on the hub; None if it is not there.
    """
    from peft import get_peft_model

    wrapped: Any = get_peft_model(model, peft_config(settings, family_of(model.config)), autocast_adapter_dtype=False)
    wrapped.load_state_dict({PREFIX + name: tensor for name, tensor in weights.items()})
    wrapped.save_pretrained(str(adapter))
    _rewrite_config(adapter, base)
    merged: dict[str, torch.Tensor] = wrapped.merge_and_unload(safe_merge=True).state_dict()
    return merged


def _rewrite_config(adapter: Path, base: HubModel | None) -> None:
    """Make an adapter's folder portable and reproducible.

    peft records the local folder of the base model, also in an otherwise empty model card, and writes layer names in
    the order of a set.
    """
    (adapter / CARD).unlink(missing_ok=True)
    config = json.loads((adapter / SETTINGS).read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = None if base is None else base.repo
    config["revision"] = None if base is None else base.revision
    (adapter / SETTINGS).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_checksums(adapter)
