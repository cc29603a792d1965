"""Loads captioners and their processors.

``references`` resolves a model reference to a local folder. Weights are loaded from safetensors only, never from
pickles, and no code from a model folder is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from jsfree.config import ClipModel, DeviceMap, ModelFiles, Preprocessing
from jsfree.errors import ModelError
from jsfree.gpus import check_dtype, visible_gpu
from jsfree.models import prompts
from jsfree.models.clip import clip_source
from jsfree.models.contents import CAPTIONER, CLIP
from jsfree.models.families.base import Family, ImageInputs, Prompt, Tensors, join_images, moved, vision_ids
from jsfree.models.families.registry import family_of, window_of
from jsfree.models.padding import pad_to_square
from jsfree.models.references import local_folder, look_up

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CACHED_PROMPTS = 1024
BLANK_SIDE = 64
GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Captioner:
    """An image-language model with its processor, its family and the preprocessing of images and prompts."""

    model: PreTrainedModel
    processor: ProcessorMixin
    preprocessing: Preprocessing = "crop"

    @cached_property
    def family(self) -> Family:
        """What differs between families of models.

        Raises:
            ModelError: the model is of no supported family.
        """
        return family_of(self.model.config)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def language_model(self) -> Any:
        """The language model without its head."""
        return self.family.language_model(self.model)

    def inputs(self, image: Image.Image) -> ImageInputs:
        """Preprocess an RGB image to tensors on the CPU. Thread-safe."""
        return self.family.inputs(self.processor, self.model.config, self.padded(image))

    def padded(self, image: Image.Image) -> Image.Image:
        """An RGB image as the image processor gets it: padded to a square if ``preprocessing`` is ``pad``."""
        if self.preprocessing != "pad":
            return image
        processor = self.processor.image_processor
        return pad_to_square(image, self._mean_color, _resized_side(processor), processor.resample)

    def map_pixels(self, image: ImageInputs, function: Callable[[torch.Tensor], torch.Tensor]) -> ImageInputs:
        """Apply a function to the preprocessed pixels, (3, height, width), of each picture that the tower sees."""
        return self.family.map_pixels(self.model.config, image, function)

    @cached_property
    def blank(self) -> ImageInputs:
        """A small black image, preprocessed: a stand-in where the content does not matter."""
        return self.inputs(Image.new("RGB", (BLANK_SIDE, BLANK_SIDE)))

    def batch(self, images: Sequence[ImageInputs]) -> Tensors:
        """Join preprocessed images, on the device and in the dtype of the model."""
        return moved(join_images(images), self.device, self.model.dtype)

    def forward_arguments(self, prompt: Sequence[int], images: Sequence[ImageInputs]) -> Tensors:
        """Arguments of the model's forward, besides ``input_ids``, for several images with the same prompt."""
        tokens = self.family.token_arguments(self.processor, prompt)
        repeated = {name: tensor.expand(len(images), -1).to(self.device) for name, tensor in tokens.items()}
        return self.batch(images) | repeated

    def prompt_ids(self, text: prompts.ChatPrompt, image: ImageInputs | None) -> list[int]:
        """Tokenize a prompt with an image, or without one."""
        return list(self._prompts(text, None if image is None else image.text))

    def placeholder_ids(self, text: prompts.ChatPrompt) -> list[int]:
        """Tokenize a prompt in which a placeholder stands for the image, as the chat template writes it."""
        placeholder = self.family.placeholder(self.processor)
        return prompts.tokenize(self.processor, prompts.conditional_prompt(self.processor, text, placeholder))

    def prompt(self, text: prompts.ChatPrompt, image: ImageInputs | None) -> Prompt:
        """Tokenize a prompt, and find the positions of its tokens."""
        ids = self.prompt_ids(text, image)
        if image is None:
            return Prompt.of_text(ids)
        return Prompt(ids, self.family.positions(self.model, self.processor, ids, image))

    @cached_property
    def _prompts(self) -> Callable[[prompts.ChatPrompt, str | None], list[int]]:
        """Tokens of the latest prompts, by their text and that of the image."""

        def tokenized(text: prompts.ChatPrompt, image: str | None) -> list[int]:
            placeholder = self.family.placeholder(self.processor)
            if image is None:
                rendered = prompts.unconditional_prompt(self.processor, text)
            else:
                for part in prompts.Conversation.of(text).texts:
                    prompts.require_plain(part, self.vision_tokens)
                rendered = prompts.conditional_prompt(self.processor, text, placeholder).replace(placeholder, image)
            return prompts.tokenize(self.processor, rendered)

        return lru_cache(CACHED_PROMPTS)(tokenized)

    def longest_caption(self, prompt: Prompt) -> int:
        """Most tokens of a caption after a prompt: within the context, and within a sliding window if there is one."""
        context = int(self.model.config.get_text_config().max_position_embeddings)
        window = window_of(self.model.config)
        return min(context - prompt.next_position, context if window is None else window - len(prompt))

    @cached_property
    def vision_ids(self) -> frozenset[int]:
        """Ids of the tokens that stand for images and videos, or for their begin and end."""
        return vision_ids(self.family, self.model.config, self.processor)

    @cached_property
    def vision_tokens(self) -> tuple[str, ...]:
        """The tokens of ``vision_ids``, which no text may contain."""
        tokens = self.processor.tokenizer.convert_ids_to_tokens(sorted(self.vision_ids))
        return tuple(token for token in tokens if token is not None)

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

        These are ``vision_ids``, the padding token, and ids without a token in the tokenizer: LLaVA-1.5's tokenizer has
        32,002 tokens, and the vocabulary of the model is padded to 32,064. Tokens that end a caption are not included.
        """
        tokenizer = self.processor.tokenizer
        model_ids = set(range(self.vocabulary))
        undecodable = model_ids - set(tokenizer.get_vocab().values())
        special = self.vision_ids | {tokenizer.pad_token_id}
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
        ModelError: the model does not exist, is gated, incomplete, or of no supported family.
    """
    if torch.device(device).type == "cuda":
        check_dtype(visible_gpu(1), dtype)
    import transformers
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    path = local_folder(ref, CAPTIONER, files)
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        family = _family_with(preprocessing, ref, config)
        model, loaded = getattr(transformers, family.model_class).from_pretrained(
            path,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **({"device_map": "auto"} if device_map == "auto" else {}),
        )
        processor = family.load_processor(path)
    except (ImportError, OSError, RuntimeError, ValueError, SafetensorError) as error:
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


def describe_captioner(ref: str, preprocessing: Preprocessing = "crop", files: ModelFiles | None = None) -> Captioner:
    """Load a captioner's processor and configurations, without its weights: its model is on the meta device.

    It renders and tokenizes prompts, preprocesses images and decodes tokens as the captioner does.

    Args:
        ref: model reference; the model is downloaded if it is not on this node.
        preprocessing: as of ``Captioner``.
        files: settings of downloads; None: the defaults.

    Raises:
        ModelError: as ``load_captioner``.
    """
    import transformers

    path = local_folder(ref, CAPTIONER, files)
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        family = _family_with(preprocessing, ref, config)
        with torch.device("meta"):
            model = getattr(transformers, family.model_class)._from_config(config)
        if (path / GENERATION_CONFIG).is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(path, local_files_only=True)
        return Captioner(model.eval(), family.load_processor(path), preprocessing)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"captioner {ref!r} cannot be loaded from {path}: {' '.join(str(error).split())}") from error


def _family_with(preprocessing: Preprocessing, ref: str, config: Any) -> Family:
    """The family of a configuration.

    Raises:
        ModelError: it is not supported, or not with this preprocessing.
    """
    family = family_of(config)
    if preprocessing == "pad" and not family.pads_images:
        raise ModelError(
            f"captioner {ref!r}: images of {config.model_type!r} are not padded to squares",
            "set 'captioner.preprocessing: crop', which is its own preprocessing",
        )
    return family


def look_up_models(captioner: str, scorers: Sequence[ClipModel], files: ModelFiles) -> ModelFiles:
    """Check that the models of a run exist, and record the commits of hub models.

    Raises:
        ModelError: a model is missing, gated or incomplete.
    """
    commits = look_up(captioner, CAPTIONER, files)
    for scorer in scorers:
        commits |= look_up(clip_source(scorer.versioned_ref, scorer.pretrained).ref, CLIP, files)
    return files.model_copy(update={"commits": {**files.commits, **commits}})
