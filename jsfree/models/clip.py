"""Loads CLIP models: any two-tower model of open_clip, among them SigLIP, EVA02-CLIP, PE-Core and MobileCLIP.

Weights are loaded from safetensors only, and the tokenizer, its text cleaning and the preprocessing of images are those
of the model's own configuration. ``clip_text`` encodes texts with them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from jsfree.config import ModelFiles
from jsfree.errors import ModelError
from jsfree.models.contents import CLIP
from jsfree.models.references import WEIGHTS, local_folder
from jsfree.uris import PACKAGED, is_hub_syntax

CONFIG = "open_clip_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.txt", "sentencepiece.model")
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Clip:
    """An open_clip model with its image transform and tokenizer."""

    model: Any
    transform: Any
    tokenizer: Any
    context_length: int
    device: torch.device


@dataclass(frozen=True)
class ClipSource:
    """A model reference, and what open_clip's table of weights says about them.

    Attributes:
        ref: a reference as in ``references``.
        quick_gelu: the weights were trained with the QuickGELU activation.
        preprocessing: preprocessing of images (``PREPROCESSING``); empty: that of the model's configuration.
    """

    ref: str
    quick_gelu: bool = False
    preprocessing: dict[str, Any] = field(default_factory=dict)


def load_clip(ref: str, device: str = "cpu", pretrained: str | None = None, files: ModelFiles | None = None) -> Clip:
    """Load an open_clip model.

    Args:
        ref: a model reference (see ``references``), an ``hf-hub:`` id, or an open_clip name with ``pretrained``.

    Raises:
        ModelError: the model does not exist, is gated, or is not a complete open_clip model.
    """
    import open_clip
    from safetensors import SafetensorError

    source = clip_source(ref, pretrained)
    folder = local_folder(source.ref, CLIP, files)
    require_own_text_tower(ref, model_settings(ref, folder)["text_cfg"], folder)
    name = f"local-dir:{folder}"
    try:
        model, transform = open_clip.create_model_from_pretrained(
            name,
            device=device,
            force_quick_gelu=source.quick_gelu,
            **{f"image_{key}": value for key, value in source.preprocessing.items()},
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(f"CLIP {ref!r} cannot be loaded: {' '.join(str(error).split())}") from error
    return Clip(model.eval(), transform, tokenizer, int(model.context_length), torch.device(device))


def clip_source(ref: str, pretrained: str | None) -> ClipSource:
    """Resolve an open_clip name and tag to the hub model that contains the weights.

    The activation follows from the weights, also of a hub model that open_clip lists: open_clip itself would load
    OpenAI's weights into a ``ViT-L-14-336`` without the QuickGELU activation that they were trained with, and only log
    a warning.

    Raises:
        ModelError: the tag does not exist, or its weights are not on the hub.
    """
    if ref.startswith("hf-hub:"):
        ref = ref.removeprefix("hf-hub:")
        return ClipSource(ref, quick_gelu=ref.partition("@")[0] in _quick_gelu_repos())
    name, at, revision = ref.partition("@")
    if not is_hub_syntax(ref) or Path(ref).is_dir():
        return ClipSource(ref)
    import open_clip

    if name not in open_clip.list_models():
        return ClipSource(ref, quick_gelu=name in _quick_gelu_repos())
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        raise ModelError(
            f"CLIP {name!r} has no weights {pretrained!r}",
            f"set 'clip.pretrained' to one of {', '.join(tags) or 'none'}",
        )
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    repo, _, file = tag["hf_hub"].rpartition("/")
    if not repo or (file and not file.endswith(".safetensors")):
        raise ModelError(
            f"CLIP {name!r} has only pickled weights for {pretrained!r}, which can execute code when loaded",
            "choose another 'clip.pretrained', or an hf-hub: model with safetensors",
        )
    return ClipSource(
        f"{repo}{at}{revision}",
        quick_gelu=bool(tag.get("quick_gelu", False)),
        preprocessing={key: tag[key] for key in PREPROCESSING if tag.get(key) is not None},
    )


def known_settings(ref: str, pretrained: str | None) -> dict[str, Any] | None:
    """The configuration of a model, open_clip's ``model_cfg``, as far as it is on this machine, without downloading it.

    Returns:
        None for a model elsewhere that open_clip does not list.

    Raises:
        ModelError: the tag does not exist, or the configuration does not describe a two-tower model.
    """
    import open_clip

    source = clip_source(ref, pretrained).ref
    repo = source.partition("@")[0]
    for name, tag in open_clip.list_pretrained():
        if open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "").rpartition("/")[0] == repo:
            settings: dict[str, Any] | None = open_clip.get_model_config(name)
            return settings
    folder = WEIGHTS / repo.removeprefix(PACKAGED) if repo.startswith(PACKAGED) else Path(source).expanduser()
    return model_settings(ref, folder) if folder.is_dir() else None


def model_settings(ref: str, folder: Path) -> dict[str, Any]:
    """The configuration of a model, open_clip's ``model_cfg``, with its parts ``vision_cfg`` and ``text_cfg``.

    Raises:
        ModelError: ``open_clip_config.json`` does not describe a two-tower model.
    """
    try:
        settings: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        for part in ("vision_cfg", "text_cfg"):
            settings[part].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"CLIP {ref!r}: {CONFIG} does not describe a CLIP model ({error})", "use another, or fetch it again"
        ) from error
    return settings


def require_own_text_tower(ref: str, text: dict[str, Any], folder: Path) -> None:
    """Check that a model's folder has all that its text tower consists of; open_clip would fetch the rest.

    Raises:
        ModelError: the text tower is another hub model, or the tokenizer is missing.
    """
    if text.get("hf_model_name"):
        raise ModelError(
            f"CLIP {ref!r}: its text tower is the model {text['hf_model_name']!r}, which is not among its files",
            "use a CLIP model with a text tower of its own (docs/models.md, Scorers)",
        )
    if text.get("hf_tokenizer_name") and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"CLIP {ref!r} has no tokenizer: it uses that of {text['hf_tokenizer_name']!r}",
            "copy the tokenizer's files into a local folder with the model, and set clip.ref to that folder",
        )


@cache
def _quick_gelu_repos() -> frozenset[str]:
    """Hub models whose weights were trained with QuickGELU, from open_clip's table of weights."""
    import open_clip

    tags = (open_clip.get_pretrained_cfg(name, tag) for name, tag in open_clip.list_pretrained())
    return frozenset(tag["hf_hub"].rpartition("/")[0] for tag in tags if tag.get("quick_gelu") and tag.get("hf_hub"))
