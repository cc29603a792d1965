"""Loads LLaVA captioners and their processors.

``references`` resolves a model reference to a local folder. Weights are loaded from safetensors only, never from
pickles, and no code from a model folder is executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from jsfree.config import ClipModel, DeviceMap, ModelFiles, Preprocessing
from jsfree.errors import ModelError
from jsfree.gpus import check_dtype, visible_gpu
from jsfree.models import prompts
from jsfree.models.clip import clip_source
from jsfree.models.contents import CAPTIONER, CLIP
from jsfree.models.padding import pad_to_square
from jsfree.models.prompts import visual_tokens
from jsfree.models.references import local_folder, look_up

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Captioner:
    """A LLaVA model with its processor and the preprocessing of images and prompts."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    preprocessing: Preprocessing = "crop"

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Preprocess an RGB image to a tensor (3, height, width), float32 on the CPU. Thread-safe."""
        processor = self.processor.image_processor
        if self.preprocessing == "pad":
            image = pad_to_square(image, self._mean_color, _resized_side(processor), processor.resample)
        pixels: torch.Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def batch(self, pixels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Stack preprocessed images to (images, 3, height, width), on the device and in the dtype of the model."""
        return torch.stack(list(pixels)).to(device=self.device, dtype=self.model.dtype)

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Preprocess and stack RGB images."""
        return self.batch([self.pixels(image) for image in images])

    def prompt_ids(self, text: str, *, image: bool) -> list[int]:
        """Tokenize a prompt. With ``image``, the image token is repeated once per visual token."""
        if not image:
            return list(self.processor.tokenizer(prompts.unconditional_prompt(self.processor, text))["input_ids"])
        token = self.processor.image_token
        rendered = prompts.conditional_prompt(self.processor, text).replace(token, token * self.image_tokens)
        return list(self.processor.tokenizer(rendered)["input_ids"])

    @cached_property
    def image_tokens(self) -> int:
        """Number of visual tokens per image (576 for LLaVA-1.5)."""
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
        """Token ids that are never sampled, in ascending order.

        These are the image token, the padding token, and ids without a token in the tokenizer: LLaVA-1.5's tokenizer
        has 32,002 tokens, and the vocabulary of the model is padded to 32,064. Tokens that end a caption are not
        included.
        """
        tokenizer = self.processor.tokenizer
        model_ids = set(range(self.vocabulary))
        undecodable = model_ids - set(tokenizer.get_vocab().values())
        special = {self.model.config.image_token_index, tokenizer.pad_token_id}
        return tuple(sorted((undecodable | (special & model_ids)) - self.eos_ids))

    def suppress(self, logits: torch.Tensor) -> torch.Tensor:
        """Set the logits (..., vocabulary) of ``suppressed_ids`` to minus infinity, in place."""
        return logits.index_fill_(-1, self._suppressed.to(logits.device), -torch.inf)

    @cached_property
    def _suppressed(self) -> torch.Tensor:
        return torch.tensor(self.suppressed_ids, dtype=torch.int64, device=self.device)

    @cached_property
    def vocabulary(self) -> int:
        """Size of the vocabulary, which is the width of the logits."""
        return int(self.model.config.get_text_config().vocab_size)

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode a caption, without special tokens and surrounding white space."""
        return self.decode(token_ids).strip()

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode tokens, without special tokens."""
        return str(self.processor.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    @cached_property
    def _mean_color(self) -> tuple[int, ...]:
        return tuple(round(255 * channel) for channel in self.processor.image_processor.image_mean)


def _resized_side(image_processor: Any) -> int | None:
    """Side length to which an image processor scales a square; None if it does not scale."""
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
    """Load a captioner and its processor.

    Args:
        ref: model reference (see ``references``); the model is downloaded if it is not on this node.
        device_map: ``auto`` distributes the layers over all GPUs of the process.
        files: settings of downloads; None: the defaults.

    Raises:
        ModelError: the model does not exist, is gated, or is not a complete LLaVA checkpoint.
    """
    if torch.device(device).type == "cuda":
        check_dtype(visible_gpu(1), dtype)
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
            **({"device_map": "auto"} if device_map == "auto" else {}),
        )
        processor = LlavaProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(f"captioner {ref!r} cannot be loaded from {path}: {' '.join(str(error).split())}") from error
    # transformers initializes missing weights at random and only logs a warning.
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise ModelError(
            f"captioner {ref!r}: {len(missing)} weights are missing in {path}, first {missing[0]}",
            "use a complete checkpoint",
        )
    model = model if device_map == "auto" else model.to(device)
    return Captioner(model.eval(), processor, preprocessing)


def look_up_models(captioner: str, scorers: Sequence[ClipModel], files: ModelFiles) -> ModelFiles:
    """Check that the models of a run exist, and record the commits of hub models.

    Raises:
        ModelError: a model is missing, gated or incomplete.
    """
    commits = look_up(captioner, CAPTIONER, files)
    for scorer in scorers:
        commits |= look_up(clip_source(scorer.versioned_ref, scorer.pretrained).ref, CLIP, files)
    return files.model_copy(update={"commits": {**files.commits, **commits}})
