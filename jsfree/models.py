"""The only place that loads LLaVA captioners, their processors and CLIP models.

A model is named by a reference:

- ``miniworld:captioner`` and ``miniworld:clip``: the tiny models shipped with jsfree;
- a local folder;
- ``s3://...``, ``gs://...`` or any other fsspec URI of a folder, copied once into a node-local cache;
- anything else is a Hugging Face hub id (captioner) or an open_clip name (CLIP).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fsspec
import torch
from filelock import FileLock
from PIL import Image

from jsfree import prompts
from jsfree.errors import ModelError

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

Preprocessing = Literal["crop", "pad"]
PACKAGED = "miniworld:"
WEIGHTS = Path(__file__).parent / "miniworld" / "weights"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Captioner:
    """A LLaVA model, its processor and the one way in which images and prompts reach it."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    preprocessing: Preprocessing = "crop"

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Preprocess RGB images into ``(images, 3, height, width)`` on the model's device and dtype."""
        squared = (
            [pad_to_square(image, self._mean_colour) for image in images] if self.preprocessing == "pad" else images
        )
        pixels = self.processor.image_processor(images=list(squared), return_tensors="pt")["pixel_values"]
        moved: torch.Tensor = pixels.to(device=self.device, dtype=self.model.dtype)
        return moved

    def prompt_ids(self, text: str, *, image: bool) -> list[int]:
        """Token ids of the prompt; with ``image`` the image token is repeated once per visual token."""
        if not image:
            return list(self.processor.tokenizer(prompts.unconditional_prompt(self.processor, text))["input_ids"])
        token = self.processor.image_token
        rendered = prompts.conditional_prompt(self.processor, text).replace(token, token * self.image_tokens)
        return list(self.processor.tokenizer(rendered)["input_ids"])

    @cached_property
    def image_tokens(self) -> int:
        """Visual tokens an image takes in the prompt (576 for LLaVA-1.5)."""
        vision = self.model.config.vision_config
        patches: int = (vision.image_size // vision.patch_size) ** 2
        return patches + (1 if self.model.config.vision_feature_select_strategy == "full" else 0)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end a caption."""
        configured = self.model.generation_config.eos_token_id
        if configured is None:
            configured = self.processor.tokenizer.eos_token_id
        return frozenset(configured if isinstance(configured, list) else [configured])

    @cached_property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Token ids that no caption may hold: an image token in a completion would ask for an image's features."""
        padding = self.processor.tokenizer.pad_token_id
        ids = {self.model.config.image_token_index, *(() if padding is None else (padding,))}
        return tuple(sorted(ids - self.eos_ids))

    def text(self, token_ids: Sequence[int]) -> str:
        """The caption that these completion tokens spell, without special tokens and outer blanks."""
        return str(self.processor.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()

    @cached_property
    def _mean_colour(self) -> tuple[int, ...]:
        return tuple(round(255 * channel) for channel in self.processor.image_processor.image_mean)


@dataclass(frozen=True)
class Clip:
    """An open_clip model with its image transform and tokenizer."""

    model: Any
    transform: Any
    tokenizer: Any
    context_length: int
    device: torch.device


def device_of(gpus: float) -> str:
    """Where a replica that reserved ``gpus`` computes.

    Raises:
        ModelError: GPUs were reserved, but torch sees none.
    """
    if gpus == 0:
        return "cpu"
    if not torch.cuda.is_available():
        raise ModelError(f"{gpus:g} GPUs reserved, but torch sees no CUDA device; check the driver or set gpus: 0")
    return "cuda"


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Centre ``image`` on a square of its longer side, filled with ``colour`` (LLaVA's original preprocessing)."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def load_captioner(
    ref: str, device: str = "cpu", dtype: str = "float32", preprocessing: Preprocessing = "crop"
) -> Captioner:
    """Load a captioner and its processor.

    Raises:
        ModelError: the reference leads nowhere, is gated, or is no LLaVA checkpoint.
    """
    from transformers import LlavaForConditionalGeneration, LlavaProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    path = resolve(ref)
    try:
        model = LlavaForConditionalGeneration.from_pretrained(
            path, dtype=DTYPES[dtype], local_files_only=Path(path).is_dir()
        )
        processor = LlavaProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"captioner {ref!r} cannot be loaded: {error}") from error
    return Captioner(model.to(device).eval(), processor, preprocessing)


def load_clip(ref: str, device: str = "cpu", pretrained: str | None = None) -> Clip:
    """Load an open_clip model: a reference to a folder, an ``hf-hub:`` id, or a built-in name with ``pretrained``.

    Raises:
        ModelError: the reference leads nowhere or is no open_clip model.
    """
    import open_clip

    path = resolve(ref)
    name = f"local-dir:{path}" if Path(path).is_dir() else path
    try:
        model, transform = open_clip.create_model_from_pretrained(name, pretrained=pretrained, device=device)
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"CLIP {ref!r} cannot be loaded: {error}") from error
    return Clip(model.eval(), transform, tokenizer, int(model.context_length), torch.device(device))


def resolve(ref: str) -> str:
    """Turn a reference into a local folder, or leave it as it is when it is a name for a hub.

    Raises:
        ModelError: a path, URI or packaged name that does not exist.
    """
    if ref.startswith(PACKAGED):
        return _existing(WEIGHTS / ref.removeprefix(PACKAGED), ref)
    if "://" in ref:
        return _fetched(ref)
    if ref.startswith(("/", "./", "../", "~")) or Path(ref).is_dir():
        return _existing(Path(ref).expanduser(), ref)
    return ref


def _existing(path: Path, ref: str) -> str:
    if not path.is_dir():
        raise ModelError(f"model {ref!r}: there is no folder {path}")
    return str(path)


def _fetched(uri: str) -> str:
    """Copy a remote model folder into the node-local cache, once however many processes ask."""
    if uri.startswith("file://"):
        return _existing(Path(uri.removeprefix("file://")), uri)
    cache = Path(os.environ.get("JSFREE_CACHE", Path.home() / ".cache" / "jsfree")) / "models"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / hashlib.sha256(uri.encode()).hexdigest()[:24]
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            filesystem, path = fsspec.url_to_fs(uri)
            if not filesystem.isdir(path):
                raise ModelError(f"model {uri!r}: there is no such folder")
            filesystem.get(path.rstrip("/") + "/", str(partial) + "/", recursive=True)
            partial.rename(target)
    return str(target)
