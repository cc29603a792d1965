"""Name and licence of the model that a run started from, without folders of this machine.

A fine-tuned model is under its base's licence, which is read from the front matter of the base's model card, either
``README.md`` in its folder or the hub's. If neither is available, the licence is unknown, which is not an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jsfree.config import ModelFiles
from jsfree.errors import StorageError
from jsfree.models.contents import CARD
from jsfree.models.hub import HubModel, card_data
from jsfree.models.references import hub_model
from jsfree.run.folder import Folder
from jsfree.uris import PACKAGED, has_scheme

LICENCE_KEYS = ("license", "license_name", "license_link")
"""Keys of a card's front matter for the licence, as the hub spells them."""
OWN_LICENCE = "apache-2.0"
"""Licence of the models shipped with jsfree."""


@dataclass(frozen=True)
class Base:
    """A base model: its name, its repository on the hub (if any), and its licence as keys of a card."""

    name: str
    hub: HubModel | None
    licence: Mapping[str, str]


def base_of(ref: str, files: ModelFiles) -> Base:
    """Describe the model of a reference."""
    if ref.startswith(PACKAGED):
        return Base("MiniWorld's tiny LLaVA", None, {"license": OWN_LICENCE})
    hub = hub_model(ref, files)
    data = front_matter(_card_in_folder(ref)) if hub is None else card_data(hub, files)
    name = ref.rstrip("/").rsplit("/", 1)[-1] if hub is None else hub.repo
    return Base(name, hub, {key: str(data[key]) for key in LICENCE_KEYS if data.get(key)})


def front_matter(card: str) -> Mapping[str, Any]:
    """Parse the YAML between the two lines of dashes at the start of a card; empty if missing or invalid."""
    dashes, _, rest = card.partition("---\n")
    block, end, _ = rest.partition("\n---")
    if dashes or not end:
        return {}
    try:
        data = yaml.safe_load(block)
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def _card_in_folder(ref: str) -> str:
    try:
        folder = Folder(str(Path(ref).expanduser()) if not has_scheme(ref) else ref)
        return folder.read(CARD).decode(errors="replace") if folder.exists(CARD) else ""
    except StorageError:
        return ""
