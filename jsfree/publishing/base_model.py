"""What others may know of the model that a run began with: a name without this machine's folders, and its licence.

A fine-tuned model is under its base's licence. It is read from the front matter of the base's own card: ``README.md``
in its folder, or what the hub says of it. Where neither can be asked it stays unknown, which is no error.
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
"""Keys of a card's front matter that say what a model may be used for; the hub's spelling."""
OWN_LICENCE = "apache-2.0"
"""That of the models shipped with jsfree."""


@dataclass(frozen=True)
class Base:
    """A base model: what to call it, where the hub has it (if it is one of the hub's), its licence as card keys."""

    name: str
    hub: HubModel | None
    licence: Mapping[str, str]


def base_of(ref: str, files: ModelFiles) -> Base:
    """What can be said of the model behind a reference."""
    if ref.startswith(PACKAGED):
        return Base("MiniWorld's tiny LLaVA", None, {"license": OWN_LICENCE})
    hub = hub_model(ref, files)
    told = front_matter(_card_beside(ref)) if hub is None else card_data(hub, files)
    name = ref.rstrip("/").rsplit("/", 1)[-1] if hub is None else hub.repo
    return Base(name, hub, {key: str(told[key]) for key in LICENCE_KEYS if told.get(key)})


def front_matter(card: str) -> Mapping[str, Any]:
    """The YAML between the two lines of dashes at the start of a card; empty where there is none that can be read."""
    dashes, _, rest = card.partition("---\n")
    block, end, _ = rest.partition("\n---")
    if dashes or not end:
        return {}
    try:
        told = yaml.safe_load(block)
    except yaml.YAMLError:
        return {}
    return told if isinstance(told, dict) else {}


def _card_beside(ref: str) -> str:
    try:
        folder = Folder(str(Path(ref).expanduser()) if not has_scheme(ref) else ref)
        return folder.read(CARD).decode(errors="replace") if folder.exists(CARD) else ""
    except StorageError:
        return ""
