"""Whether a captioner and a CLIP model are there, whole and fit; weights are neither fetched nor loaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from jsfree import prompts, shapes
from jsfree.config import RunConfig
from jsfree.dpo.footprint import BYTES
from jsfree.errors import ModelError
from jsfree.model_files import description_folder, look_up
from jsfree.model_folder import CAPTIONER, CLIP
from jsfree.models import clip_source
from jsfree.preflight.findings import Finding, fails, note, ok
from jsfree.preflight.memory import Lengths
from jsfree.preflight.work import caption_tokens
from jsfree.shapes import LlavaShape

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaProcessor

AREA = "models"
REMEDY = "correct captioner.ref or clip.ref: a hub id, a folder or a URI"
CHARS_A_TOKEN, TEMPLATE_TOKENS = 4, 10
"""To guess a prompt's tokens where there is no tokenizer."""


@dataclass(frozen=True)
class Description:
    """What a captioner's folder says of it beside its weights."""

    folder: Path
    config: LlavaConfig
    processor: LlavaProcessor

    @property
    def image_tokens(self) -> int:
        """Visual tokens that the vision tower gives for an image."""
        vision = self.config.vision_config
        patches: int = (vision.image_size // vision.patch_size) ** 2
        return patches + (1 if self.config.vision_feature_select_strategy == "full" else 0)


@contextmanager
def described(config: RunConfig) -> Iterator[Description]:
    """The captioner's configuration and processor.

    Raises:
        ModelError: it is missing, gated or not whole, or its files cannot be read.
    """
    from transformers import LlavaConfig, LlavaProcessor

    ref = config.captioner.versioned_ref
    look_up(ref, CAPTIONER, config.models)
    with description_folder(ref, CAPTIONER, config.models) as folder:
        try:
            read = LlavaConfig.from_pretrained(folder), LlavaProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"captioner {ref!r}: its configuration or processor cannot be read ({' '.join(str(error).split())});"
                " fetch or publish it again"
            ) from error
        yield Description(folder, *read)


def check_captioner(config: RunConfig, model: Description) -> Iterator[Finding]:
    """Files, image tokens, prompt, lengths.

    Raises:
        ModelError: the chat template is missing or of no use, or weights are cut.
        ConfigError: the prompt holds the image token.
    """
    yield ok(AREA, "captioner", f"{config.captioner.versioned_ref}: {_size_of(model)}")
    yield from _weights(config, model)
    yield from _image_tokens(model, config.prompt)
    yield from _tokenizer(model)
    yield from _lengths_fit(config, model)


def _size_of(model: Description) -> str:
    shape = shapes.shape_of(model.config)
    return f"{shapes.parameters(shape) / 1e9:.3g} billion parameters, {model.image_tokens} visual tokens an image"


def _weights(config: RunConfig, model: Description) -> Iterator[Finding]:
    """The tensors in local files against those that the configuration asks for; by their headers alone."""
    files = sorted(model.folder.glob(CAPTIONER.weights))
    if not files:  # of the hub, not fetched yet
        size = BYTES[config.captioner.dtype] * shapes.parameters(shapes.shape_of(model.config)) / 1e9
        yield ok(
            AREA, "weights", f"listed by the hub or store; each node fetches some {size:.0f} GB when a stage starts"
        )
        return
    there = {name for path in files for name in tensor_names(path)}
    missing = sorted(set(shapes.tensors(shapes.shape_of(model.config))) - there)
    missing = [name for name in missing if not (model.config.tie_word_embeddings and name.endswith("lm_head.weight"))]
    if missing:
        yield fails(
            AREA,
            "weights",
            f"{len(missing)} weights are not in {model.folder}, first {missing[0]}",
            "it is no whole checkpoint in the hub's key layout: fetch or publish it again",
        )
    else:
        yield ok(AREA, "weights", f"{len(there)} tensors in {len(files)} files, all that the configuration asks for")


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file, by its header.

    Raises:
        ModelError: it is none, or shorter than its header says.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length)) if length < size else {}
        names = [name for name in header if name != "__metadata__"]
        end = 8 + length + max(header[name]["data_offsets"][1] for name in names)
    except (struct.error, ValueError, KeyError) as error:
        raise ModelError(f"{path} is no safetensors file; fetch or copy it again") from error
    if size < end:
        raise ModelError(f"{path} has {size:,} bytes, its header says {end:,}; it was copied in part: copy it again")
    return names


def _image_tokens(model: Description, prompt: str) -> Iterator[Finding]:
    """An empty image and the prompt through the processor, as other programs use it."""
    rendered = prompts.conditional_prompt(model.processor, prompt)
    seen = model.processor(images=Image.new("RGB", (64, 48)), text=rendered, return_tensors="pt")
    found = int((seen["input_ids"] == model.config.image_token_index).sum())
    height, width = seen["pixel_values"].shape[-2:]
    side = model.config.vision_config.image_size
    if (height, width) != (side, side):
        yield fails(
            AREA,
            "image size",
            f"the processor makes images of {width} x {height}, the vision tower sees {side} x {side}",
            "correct crop_size and size in preprocessor_config.json or processor_config.json",
        )
    if found != model.image_tokens:
        yield fails(
            AREA,
            "image tokens",
            f"the processor puts {found} image tokens into the prompt, the vision tower gives {model.image_tokens}",
            "correct patch_size, num_additional_image_tokens and vision_feature_select_strategy in"
            " processor_config.json, or image_token_index in config.json",
        )
    elif (height, width) == (side, side):
        yield ok(AREA, "image tokens", f"{found}, from the processor as from the vision tower")
    yield ok(AREA, "prompt", " ".join(rendered.split()))


def _tokenizer(model: Description) -> Iterator[Finding]:
    tokenizer = model.processor.tokenizer
    words, rows = len(tokenizer), model.config.get_text_config().vocab_size
    if words > rows:
        yield fails(
            AREA,
            "vocabulary",
            f"the tokenizer knows {words:,} tokens, the language model {rows:,}",
            "take tokenizer and weights of one checkpoint",
        )
    if tokenizer.padding_side != "left":
        yield note(
            AREA,
            "padding side",
            f"{tokenizer.padding_side}: other programs that decode batches need left",
            'set "padding_side": "left" in tokenizer_config.json; jsfree itself pads nothing',
        )
    else:
        yield ok(AREA, "padding side", "left, as batched decoding elsewhere needs it")


def _lengths_fit(config: RunConfig, model: Description) -> Iterator[Finding]:
    """Prompt, image and the longest caption against the context: nothing is ever cut silently."""
    room = model.config.get_text_config().max_position_embeddings
    prefix = lengths(config, model).prefix
    asked = {"generate.decoding": config.generate.decoding.max_new_tokens}
    asked |= {f"evaluate.modes.{name}": mode.max_new_tokens for name, mode in config.evaluate.modes.items()}
    too_long = {name: most for name, most in asked.items() if prefix + most > room}
    for name, most in too_long.items():
        yield fails(
            AREA,
            "context",
            f"image and prompt take {prefix} positions and {name}.max_new_tokens {most}, together more than the"
            f" model's {room}",
            f"set {name}.max_new_tokens to {max(0, room - prefix)} or less",
        )
    if not too_long:
        yield ok(AREA, "context", f"{prefix} for image and prompt and up to {max(asked.values())} of {room} positions")


def lengths(config: RunConfig, model: Description) -> Lengths:
    """Tokens of the prompt, as the tokenizer has them, and of captions."""
    tokenizer = model.processor.tokenizer
    with_image = prompts.conditional_prompt(model.processor, config.prompt)
    without = prompts.unconditional_prompt(model.processor, config.prompt)
    prefix = len(tokenizer(with_image)["input_ids"]) - 1 + model.image_tokens
    return Lengths(
        prefix, len(tokenizer(without)["input_ids"]), caption_tokens(config), config.generate.decoding.max_new_tokens
    )


def guessed_lengths(config: RunConfig, shape: LlavaShape) -> Lengths:
    """The same without a tokenizer."""
    words = TEMPLATE_TOKENS + len(config.prompt) // CHARS_A_TOKEN
    return Lengths(shape.image_tokens + words, words, caption_tokens(config), config.generate.decoding.max_new_tokens)


def check_clip(config: RunConfig) -> Iterator[Finding]:
    """CLIP's files, and what its configuration says of images and texts.

    Raises:
        ModelError: it is missing, gated or not whole.
    """
    ref, _ = clip_source(config.clip.versioned_ref, config.clip.pretrained)
    look_up(ref, CLIP, config.models)
    with description_folder(ref, CLIP, config.models) as folder:
        try:
            settings = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
            context, side = settings["text_cfg"].get("context_length", 77), settings["vision_cfg"]["image_size"]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"CLIP {ref!r}: open_clip_config.json does not describe a CLIP model ({error}); take another, or fetch"
                " it again"
            ) from error
    found = f"{config.clip.versioned_ref}: images of {side} pixels; sentences over {context} tokens are cut in parts"
    yield ok(AREA, "CLIP", found)
