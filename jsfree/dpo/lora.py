"""LoRA through peft: small trained factors beside the frozen weights, merged into them when training ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jsfree.config import Lora
from jsfree.errors import ConfigError
from jsfree.models.contents import CARD, write_checksums
from jsfree.models.hub import HubModel

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import LlavaForConditionalGeneration

PREFIX = "base_model.model."
"""What peft puts before the names of the model it wraps."""
HEAD = "lm_head"
"""It gets no adapter: training computes log-probabilities from its weight alone."""
SETTINGS = "adapter_config.json"
"""peft's name for what it must know of an adapter."""


def peft_config(settings: Lora) -> LoraConfig:
    """peft's configuration; the vision tower is left alone, whose layers have the same names."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,  # the policy must begin as the reference
        target_modules=list(settings.targets),
        exclude_modules=r".*vision_tower.*",
    )


def add_adapters(model: LlavaForConditionalGeneration, settings: Lora) -> None:
    """Put adapters into a model; they alone require gradients.

    Raises:
        ConfigError: the model has no linear layer of a name, but for the vision tower's and the head.
    """
    from peft import inject_adapter_in_model

    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    there = {name.split(".")[-1] for name in linear if "vision_tower" not in name and name != HEAD}
    for target in settings.targets:
        if target not in there:
            raise ConfigError(
                f"train.lora.targets: adapters can be put beside {', '.join(sorted(there))}, not beside {target!r}"
            )
    model.requires_grad_(False)
    inject_adapter_in_model(peft_config(settings), model)


def merged(
    weights: Mapping[str, torch.Tensor],
    model: LlavaForConditionalGeneration,
    settings: Lora,
    adapter: Path,
    base: HubModel | None = None,
) -> dict[str, torch.Tensor]:
    """Weights with the adapters in them.

    Args:
        weights: of a model with adapters, whole, by its names.
        model: the model that training began with; it is changed.
        adapter: folder into which the adapter is written, as peft loads it.
        base: what others know that model by, if they can know it.
    """
    from peft import get_peft_model

    wrapped: Any = get_peft_model(model, peft_config(settings), autocast_adapter_dtype=False)
    wrapped.load_state_dict({PREFIX + name: tensor for name, tensor in weights.items()})
    wrapped.save_pretrained(str(adapter))
    _address(adapter, base)
    whole: dict[str, torch.Tensor] = wrapped.merge_and_unload(safe_merge=True).state_dict()
    return whole


def _address(adapter: Path, base: HubModel | None) -> None:
    """Have an adapter name its base as others know it, and be the same bytes whenever it is written.

    peft names the folder that the base was loaded from on this node, also in a model card that says nothing else, and
    writes the names of layers in the order of a set.
    """
    (adapter / CARD).unlink(missing_ok=True)
    told = json.loads((adapter / SETTINGS).read_text(encoding="utf-8"))
    told["target_modules"] = sorted(told["target_modules"])
    told["base_model_name_or_path"] = None if base is None else base.repo
    told["revision"] = None if base is None else base.revision
    (adapter / SETTINGS).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_checksums(adapter)
