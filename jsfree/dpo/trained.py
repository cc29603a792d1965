"""Names of the parameters that DPO trains: projector and language model, or its last layers. Pure.

Names are those in the hub's weight files (``jsfree/models/saving.py: hub_key``). The vision tower is always frozen
(paper, section 4.1); ``train.trained_layers`` freezes more, for GPUs that cannot hold the whole optimizer state.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from jsfree.config import Lora
from jsfree.errors import ConfigError

LAYER = re.compile(r"language_model\.model\.layers\.(\d+)\.")
VISION, PROJECTOR = "vision_tower.", "multi_modal_projector."


def trained_names(names: Collection[str], trained_layers: int | None, lora: Lora | None = None) -> set[str]:
    """Names of the parameters that training changes.

    Args:
        names: all parameters of the model.
        trained_layers: as in ``Train.trained_layers``; None trains all but the vision tower.
        lora: as in ``Train.lora``; gives the weights that adapters are merged into.

    Raises:
        ConfigError: the model has fewer than ``trained_layers`` layers.
    """
    if lora is not None:
        targets = tuple(f".{target}.weight" for target in lora.targets)
        return {name for name in names if name.endswith(targets) and not name.startswith(VISION)}
    if trained_layers is None:
        return {name for name in names if not name.startswith(VISION)}
    layers = {name: int(match[1]) for name in names if (match := LAYER.match(name))}
    count = 1 + max(layers.values(), default=-1)
    if trained_layers > count:
        raise ConfigError(
            f"train.trained_layers is {trained_layers}, but the captioner's language model has {count} layers",
            "lower it, or set it to null to train the whole language model",
        )
    first = count - trained_layers
    return {name for name in names if name.startswith(PROJECTOR) or layers.get(name, -1) >= first}
