"""Whether a captioner and a CLIP model are there, whole and fit; weights are neither fetched nor loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from jsfree.checks.findings import Finding, fails, note, ok
from jsfree.config import ModelFiles, RunConfig
from jsfree.errors import ModelError
from jsfree.models import prompts
from jsfree.models.contents import CAPTIONER, CLIP, Kind, require_folder, require_type, tensor_shapes
from jsfree.models.hub import is_offline
from jsfree.models.loading import clip_source
from jsfree.models.prompts import visual_tokens
from jsfree.models.references import description_folder, hub_model, look_up
from jsfree.sizing import shapes
from jsfree.sizing.footprint import BYTES
from jsfree.sizing.memory import Lengths
from jsfree.sizing.shapes import LlavaShape
from jsfree.sizing.work import caption_tokens

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaProcessor

AREA = "models"
REMEDY = "correct captioner.ref or clip.ref: a hub id, a folder or a URI"
HUB_LAYOUT = "vision_tower.vision_model."
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
        return visual_tokens(self.config)


@contextmanager
def described(config: RunConfig) -> Iterator[Description]:
    """The captioner's configuration and processor.

    Raises:
        ModelError: it is missing, gated or not whole, or its files cannot be read.
    """
    ref = config.captioner.versioned_ref
    look_up(ref, CAPTIONER, config.models)
    with description_folder(ref, CAPTIONER, config.models) as folder:
        try:
            require_type(CAPTIONER, ref, lambda name: (folder / name).read_bytes())
            read = _read(folder)
        except ModelError:
            raise
        except Exception as error:  # tokenizers raises plain exceptions
            raise ModelError(
                f"captioner {ref!r}: its configuration or processor cannot be read ({' '.join(str(error).split())});"
                " fetch or publish it again"
            ) from error
        yield Description(folder, *read)


def _read(folder: Path) -> tuple[LlavaConfig, LlavaProcessor]:
    from transformers import LlavaConfig, LlavaProcessor

    return LlavaConfig.from_pretrained(folder), LlavaProcessor.from_pretrained(folder, local_files_only=True)


def is_elsewhere(ref: str, kind: Kind, files: ModelFiles) -> bool:
    """Whether a model of the hub may be in other nodes' caches alone: this one asks no hub and has it not.

    Raises:
        ModelError: as ``look_up``.
    """
    return hub_model(ref, files) is not None and not files.commits.get(ref) and not look_up(ref, kind, files)


def elsewhere(check: str, ref: str) -> Finding:
    """What can be said of such a model."""
    return note(AREA, check, f"{ref} is not in this node's cache, and no hub is asked: it could not be looked at")


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
    ref, files = config.captioner.versioned_ref, sorted(model.folder.glob(CAPTIONER.weights))
    if not _is_whole(ref, model.folder):  # not fetched yet, or in part: that goes on where it was
        size = BYTES[config.captioner.dtype] * shapes.parameters(shapes.shape_of(model.config)) / 1e9
        if is_offline(config.models):
            yield note(
                AREA, "weights", f"not whole in this node's cache, and no hub is asked: {size:.0f} GB must be there"
            )
        else:
            yield ok(
                AREA, "weights", f"listed by the hub or store; each node fetches {size:.0f} GB when a stage starts"
            )
        return
    there = {name for path in files for name in tensor_shapes(path)}
    needed = set(shapes.tensors(shapes.shape_of(model.config)))
    if model.config.tie_word_embeddings:
        needed -= {"language_model.lm_head.weight"}
    missing = sorted(needed - there)
    if missing and not any(name.startswith(HUB_LAYOUT) for name in there):
        yield note(AREA, "weights", f"{len(there)} tensors in another key layout than the hub's: not compared")
    elif missing:
        yield fails(
            AREA,
            "weights",
            f"{len(missing)} weights are not in {model.folder}, first {missing[0]}",
            "it is no whole checkpoint in the hub's key layout: fetch or publish it again",
        )
    else:
        yield ok(AREA, "weights", f"{len(there)} tensors in {len(files)} files, all that the configuration asks for")


def _is_whole(ref: str, folder: Path) -> bool:
    try:
        require_folder(CAPTIONER, ref, folder)
    except ModelError:
        return False
    return True


def _image_tokens(model: Description, prompt: str) -> Iterator[Finding]:
    """An empty image and the prompt through the processor, as other programs use it."""
    rendered = prompts.conditional_prompt(model.processor, prompt)
    yield ok(AREA, "prompt", " ".join(rendered.split()))
    height, width = model.processor.image_processor(Image.new("RGB", (64, 48)), return_tensors="pt")[
        "pixel_values"
    ].shape[-2:]
    side = model.config.vision_config.image_size
    if (height, width) != (side, side):
        yield fails(
            AREA,
            "image size",
            f"the processor makes images of {width} x {height}, the vision tower sees {side} x {side}",
            "correct crop_size and size in preprocessor_config.json or processor_config.json",
        )
    found = _tokens_of_processor(model, rendered)
    if found == model.image_tokens:
        yield ok(AREA, "image tokens", f"{found}, from the processor as from the vision tower")
    else:
        yield note(
            AREA,
            "image tokens",
            f"the processor puts {'no countable' if found is None else found} image tokens into the prompt, the vision"
            f" tower gives {model.image_tokens}, which jsfree takes; other programs will fail or misread images",
            "correct patch_size, num_additional_image_tokens and vision_feature_select_strategy in"
            " processor_config.json, or image_token_index in config.json",
        )


def _tokens_of_processor(model: Description, rendered: str) -> int | None:
    """Image tokens that the processor makes of a prompt; None where it cannot tell, as old ones without patch size."""
    try:
        seen = model.processor(images=Image.new("RGB", (64, 48)), text=rendered, return_tensors="pt")
    except (TypeError, ValueError, RuntimeError, KeyError):
        return None
    return int((seen["input_ids"] == model.config.image_token_index).sum())


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
    asked = {} if config.imported else {"generate.decoding": config.generate.decoding.max_new_tokens}
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


def clip_ref(config: RunConfig) -> str:
    """The reference behind the configured CLIP model.

    Raises:
        ModelError: there is none of the configured weights.
    """
    return clip_source(config.clip.versioned_ref, config.clip.pretrained)[0]


def check_clip(config: RunConfig) -> Iterator[Finding]:
    """CLIP's files, and what its configuration says of images and texts.

    Raises:
        ModelError: it is missing, gated or not whole.
    """
    ref = clip_ref(config)
    if is_elsewhere(ref, CLIP, config.models):
        yield elsewhere("CLIP", ref)
        return
    look_up(ref, CLIP, config.models)
    with description_folder(ref, CLIP, config.models) as folder:
        try:
            settings = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
            context, side = settings["text_cfg"].get("context_length", 77), settings["vision_cfg"]["image_size"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"CLIP {ref!r}: open_clip_config.json does not describe a CLIP model ({error})",
                "take another, or fetch it again",
            ) from error
    found = f"{config.clip.versioned_ref}: images of {side} pixels; sentences over {context} tokens are cut in parts"
    yield ok(AREA, "CLIP", found)
