"""Names of the parameters that DPO trains: projector and language model, or its last layers. Pure.

Names may be those of the hub's weight files or of transformers' parameters. The vision tower is always frozen (paper,
section 4.1); ``train.trained_layers`` freezes more, for GPUs that cannot hold the whole optimizer state.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from jsfree.config import Lora
from jsfree.errors import ConfigError
from jsfree.models.families.base import LANGUAGE, PROJECTOR, TOWER, Family

LAYER = re.compile(r"\blayers\.(\d+)\.")


def trained_names(
    names: Collection[str], family: Family, trained_layers: int | None, lora: Lora | None = None
) -> set[str]:
    """Names of the parameters that training changes.

    Args:
        names: all parameters of the model.
        family: the model's family.
        trained_layers: as in ``Train.trained_layers``; None trains all but the vision tower.
        lora: as in ``Train.lora``; gives the weights that adapters are merged into.

    Raises:
        ConfigError: the model has fewer than ``trained_layers`` layers.
    """
    if lora is not None:
        targets = tuple(f".{target}.weight" for target in lora.targets)
        return {name for name in names if name.endswith(targets) and family.part_of(name) != TOWER}
    parts = {name: family.part_of(name) for name in names}
    if trained_layers is None:
        return {name for name, part in parts.items() if part != TOWER}
    of_language = (name for name, part in parts.items() if part == LANGUAGE)
    layers = {name: int(match[1]) for name in of_language if (match := LAYER.search(name))}
    count = 1 + max(layers.values(), default=-1)
    if trained_layers > count:
        raise ConfigError(
            f"train.trained_layers is {trained_layers}, but the captioner's language model has {count} layers",
            "lower it, or set it to null to train the whole language model",
        )
    first = count - trained_layers
    return {name for name, part in parts.items() if part == PROJECTOR or layers.get(name, -1) >= first}
