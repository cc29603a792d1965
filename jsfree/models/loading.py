"""The only place that loads LLaVA captioners, their processors and CLIP models.

What a reference may be, and how it becomes a folder on this node, is said in ``model_files.py``. Models are loaded
from such a folder and from safetensors alone: no code and no pickle comes with a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from jsfree.config import DeviceMap, ModelFiles, Preprocessing
from jsfree.errors import ModelError
from jsfree.gpus import check_dtype, visible_gpu
from jsfree.models import prompts
from jsfree.models.contents import CAPTIONER, CLIP
from jsfree.models.padding import pad_to_square
from jsfree.models.prompts import visual_tokens
from jsfree.models.references import local_folder, look_up
from jsfree.uris import is_hub_syntax

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

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

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Preprocess an RGB image into ``(3, height, width)``, float32 on the CPU; of any thread."""
        processor = self.processor.image_processor
        if self.preprocessing == "pad":
            image = pad_to_square(image, self._mean_colour, _resized_side(processor), processor.resample)
        pixels: torch.Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def batch(self, pixels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Preprocessed images as the model takes them: ``(images, 3, height, width)``, on its device, in its dtype."""
        return torch.stack(list(pixels)).to(device=self.device, dtype=self.model.dtype)

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """``batch`` of RGB images."""
        return self.batch([self.pixels(image) for image in images])

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
        return visual_tokens(self.model.config)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end a caption."""
        configured = self.model.generation_config.eos_token_id
        if configured is None:
            configured = self.processor.tokenizer.eos_token_id
        return frozenset(configured if isinstance(configured, list) else [configured])

    @cached_property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Token ids that are never drawn, in ascending order.

        These are the image token (in a caption it would ask for an image's features), padding, and every id that the
        tokenizer cannot decode: LLaVA-1.5's tokenizer has 32,002 tokens, its model a vocabulary padded to 32,064.
        Tokens that end a caption are never among them.
        """
        tokenizer = self.processor.tokenizer
        model_ids = set(range(self.vocabulary))
        undecodable = model_ids - set(tokenizer.get_vocab().values())
        special = {self.model.config.image_token_index, tokenizer.pad_token_id}
        return tuple(sorted((undecodable | (special & model_ids)) - self.eos_ids))

    @cached_property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return int(self.model.config.get_text_config().vocab_size)

    def text(self, token_ids: Sequence[int]) -> str:
        """The caption that these completion tokens spell, without special tokens and outer blanks."""
        return self.spelt(token_ids).strip()

    def spelt(self, token_ids: Sequence[int]) -> str:
        """The text of completion tokens, without special tokens."""
        return str(self.processor.tokenizer.decode(list(token_ids), skip_special_tokens=True))

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


def _resized_side(image_processor: Any) -> int | None:
    """Pixels a side that an image processor scales a square to; None if it scales nothing."""
    size = image_processor.size
    sides = [side for side in (size.shortest_edge, size.height, size.width) if side]
    return max(sides) if image_processor.do_resize and sides else None


def load_captioner(
    ref: str,
    device: str = "cpu",
    dtype: str = "float32",
    preprocessing: Preprocessing = "crop",
    device_map: DeviceMap = "single",
    files: ModelFiles | None = None,
) -> Captioner:
    """Load a captioner and its processor; ``device_map="auto"`` lays the model out over all GPUs of the process.

    Args:
        ref: as in ``model_files.py``; what is not on this node is fetched, once for all its processes.
        files: where to and whether from the hub; the environment's settings when omitted.

    Raises:
        ModelError: the reference leads nowhere, is gated, or is no whole LLaVA checkpoint.
    """
    if torch.device(device).type == "cuda":
        check_dtype(visible_gpu(1), dtype)
    laid_out = device_map == "auto"
    from safetensors import SafetensorError
    from transformers import LlavaForConditionalGeneration, LlavaProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    path = local_folder(ref, CAPTIONER, files)
    try:
        model, loaded = LlavaForConditionalGeneration.from_pretrained(
            path,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **({"device_map": "auto"} if laid_out else {}),
        )
        processor = LlavaProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(f"captioner {ref!r} cannot be loaded from {path}: {' '.join(str(error).split())}") from error
    # transformers fills what is not in the files with random numbers and only logs it.
    absent = sorted(loaded["missing_keys"])
    if absent:
        raise ModelError(
            f"captioner {ref!r}: {len(absent)} weights are not in {path}, first {absent[0]}",
            "it is no whole checkpoint",
        )
    return Captioner((model if laid_out else model.to(device)).eval(), processor, preprocessing)


def load_clip(ref: str, device: str = "cpu", pretrained: str | None = None, files: ModelFiles | None = None) -> Clip:
    """Load an open_clip model: a reference to a folder, an ``hf-hub:`` id, or a built-in name with ``pretrained``.

    Raises:
        ModelError: the reference leads nowhere, is gated, or is no whole open_clip model.
    """
    import open_clip
    from safetensors import SafetensorError

    source, quick_gelu = clip_source(ref, pretrained)
    name = f"local-dir:{local_folder(source, CLIP, files)}"
    try:
        model, transform = open_clip.create_model_from_pretrained(name, device=device, force_quick_gelu=quick_gelu)
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(f"CLIP {ref!r} cannot be loaded: {' '.join(str(error).split())}") from error
    return Clip(model.eval(), transform, tokenizer, int(model.context_length), torch.device(device))


def clip_source(ref: str, pretrained: str | None) -> tuple[str, bool]:
    """The reference behind an open_clip name, and whether its weights want the QuickGELU activation.

    A built-in name and its weight tag stand for a model of the hub. open_clip itself would load OpenAI's weights
    into a ``ViT-L-14-336`` with another activation than they were trained with, and only warn.

    Raises:
        ModelError: there is no such tag, or its weights are not on the hub.
    """
    if ref.startswith("hf-hub:"):
        return ref.removeprefix("hf-hub:"), False
    name, at, revision = ref.partition("@")
    if not is_hub_syntax(ref) or Path(ref).is_dir():
        return ref, False
    import open_clip

    if name not in open_clip.list_models():
        return ref, False
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
            f"CLIP {name!r} has pickled weights only under {pretrained!r}, which run code when they are loaded",
            "choose another 'clip.pretrained', or an hf-hub: model with safetensors",
        )
    return f"{repo}{at}{revision}", bool(tag.get("quick_gelu", False))


def look_up_models(captioner: str, clip: str, pretrained: str | None, files: ModelFiles) -> ModelFiles:
    """Check that both models of a run are there, and pin those of the hub to a commit.

    Raises:
        ModelError: one of them is missing, gated, or not whole.
    """
    commits = look_up(captioner, CAPTIONER, files) | look_up(clip_source(clip, pretrained)[0], CLIP, files)
    return files.model_copy(update={"commits": {**files.commits, **commits}})
