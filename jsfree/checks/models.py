"""Checks of a captioner and a CLIP model: existence, completeness, consistency. Weights are not fetched or loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from jsfree.checks.findings import Finding, fails, note, ok
from jsfree.config import ClipModel, ModelFiles, RunConfig
from jsfree.errors import ModelError
from jsfree.models import prompts
from jsfree.models.clip import clip_source, model_settings, require_own_text_tower
from jsfree.models.contents import CAPTIONER, CLIP, Kind, require_folder, require_type, tensor_shapes
from jsfree.models.families.base import TOWER, TYPICAL_SIZE, Family, ImageInputs
from jsfree.models.families.registry import family_of, window_of
from jsfree.models.hub import is_offline
from jsfree.models.references import description_folder, hub_model, look_up
from jsfree.sizing import shapes
from jsfree.sizing.footprint import BYTES
from jsfree.sizing.memory import Lengths
from jsfree.sizing.scorers import shape_of
from jsfree.sizing.shapes import CaptionerShape
from jsfree.sizing.workload import caption_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, ProcessorMixin

AREA = "models"
REMEDY = "correct captioner.ref or clip.ref: a hub id, a folder or a URI"
FURTHER_SIZES = ((336, 336), (1920, 1080))
"""Widths and heights of images whose tokens are shown besides those of a typical one."""
CHARS_A_TOKEN, TEMPLATE_TOKENS = 4, 10
"""For estimating a prompt's tokens without a tokenizer."""


@dataclass(frozen=True)
class Description:
    """A captioner without its weights: folder, configuration and processor."""

    folder: Path
    config: PreTrainedConfig
    processor: ProcessorMixin

    @property
    def family(self) -> Family:
        """The model's family."""
        return family_of(self.config)

    def inputs(self, size: tuple[int, int]) -> ImageInputs:
        """What the model takes for an image of a size (width, height)."""
        return self.family.inputs(self.processor, self.config, Image.new("RGB", size))

    def tokens_of(self, image: ImageInputs) -> int:
        """Image tokens of an image."""
        ids = self.processor.tokenizer(image.text, add_special_tokens=False)["input_ids"]
        return int(ids.count(self.config.image_token_id))

    @property
    def image_tokens(self) -> int:
        """Image tokens of a typical image."""
        return self.tokens_of(self.inputs(TYPICAL_SIZE))

    @property
    def placeholder(self) -> str:
        """The placeholder of an image in the chat template."""
        return self.family.placeholder(self.processor)


@contextmanager
def described(config: RunConfig) -> Iterator[Description]:
    """Open the configuration and processor of the captioner.

    Raises:
        ModelError: it is missing, gated or incomplete, or its files cannot be read.
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
                f"captioner {ref!r}: its configuration or processor cannot be read ({' '.join(str(error).split())})",
                "fetch or publish it again",
            ) from error
        yield Description(folder, *read)


def _read(folder: Path) -> tuple[PreTrainedConfig, ProcessorMixin]:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    return config, family_of(config).load_processor(folder)


def is_elsewhere(ref: str, kind: Kind, files: ModelFiles) -> bool:
    """Whether a hub model may be only in the caches of other nodes: this node is offline and does not have it.

    Raises:
        ModelError: as ``look_up``.
    """
    return hub_model(ref, files) is not None and not files.commits.get(ref) and not look_up(ref, kind, files)


def unchecked(name: str, ref: str) -> Finding:
    """The finding for a model that ``is_elsewhere``."""
    return note(AREA, name, f"{ref} is not in this node's cache, and the hub is offline: not checked")


def check_captioner(config: RunConfig, model: Description) -> Iterator[Finding]:
    """Check weights, image tokens, prompt, tokenizer and lengths.

    Raises:
        ModelError: the chat template is missing or unusable, or a file of weights is incomplete.
        ConfigError: the prompt contains the image token.
    """
    shape = captioner_shape(model)
    yield ok(AREA, "captioner", f"{config.captioner.versioned_ref}: {_size_of(model, shape)}")
    yield from _weights(config, model, shape)
    yield from _prompts(model, config.prompt)
    if model.config.model_type == "llava":
        yield from _image_tokens(model, config.prompt)
    yield from _tokenizer(model)
    yield from _lengths_fit(config, model)


def captioner_shape(model: Description) -> CaptionerShape:
    """The shape of a captioner.

    Raises:
        ModelError: it is of no supported family.
    """
    numbers = model.family.feature_numbers(model.config, model.inputs(TYPICAL_SIZE))
    return shapes.shape_of(model.config, model.image_tokens, numbers)


def _size_of(model: Description, shape: CaptionerShape) -> str:
    by_size = {size: model.tokens_of(model.inputs(size)) for size in (TYPICAL_SIZE, *FURTHER_SIZES)}
    if len(set(by_size.values())) == 1:
        tokens = f"{model.image_tokens} visual tokens per image"
    else:
        counts = ", ".join(f"{count:,} at {width} x {height}" for (width, height), count in by_size.items())
        tokens = f"visual tokens by size of the image: {counts}"
    return f"{shapes.parameters(shape) / 1e9:.3g} billion parameters, {tokens}"


def _weights(config: RunConfig, model: Description, shape: CaptionerShape) -> Iterator[Finding]:
    """Compare the headers of local weights with the tensors that the configuration requires."""
    ref, files = config.captioner.versioned_ref, sorted(model.folder.glob(CAPTIONER.weights))
    if not _is_complete(ref, model.folder):  # not fetched yet, or in part
        size = BYTES[config.captioner.dtype] * shapes.parameters(shape) / 1e9
        if is_offline(config.models):
            yield note(
                AREA, "weights", f"incomplete in this node's cache, and the hub is offline: {size:.0f} GB must be there"
            )
        else:
            yield ok(
                AREA, "weights", f"listed by the hub or store; each node fetches {size:.0f} GB when a stage starts"
            )
        return
    present = {name for path in files for name in tensor_shapes(path)}
    required = set(shapes.tensors(shape))
    if model.config.tie_word_embeddings:
        required -= {"language_model.lm_head.weight"}
    missing = sorted(required - present)
    if missing and not any(shape.family.part_of(name) == TOWER for name in required & present):
        yield note(AREA, "weights", f"{len(present)} tensors in a key layout other than the hub's: not compared")
    elif missing:
        yield fails(
            AREA,
            "weights",
            f"{len(missing)} weights are not in {model.folder}, first {missing[0]}",
            "the checkpoint is incomplete or not in the hub's key layout: fetch or publish it again",
        )
    else:
        yield ok(AREA, "weights", f"{len(present)} tensors in {len(files)} files, all that the configuration requires")


def _is_complete(ref: str, folder: Path) -> bool:
    try:
        require_folder(CAPTIONER, ref, folder)
    except ModelError:
        return False
    return True


def _prompts(model: Description, prompt: str) -> Iterator[Finding]:
    """Show the prompt of each path as the chat template renders it."""
    rendered = prompts.conditional_prompt(model.processor, prompt, model.placeholder)
    yield ok(AREA, "prompt", " ".join(rendered.split()))
    yield ok(AREA, "prompt without image", " ".join(prompts.unconditional_prompt(model.processor, prompt).split()))


def _image_tokens(model: Description, prompt: str) -> Iterator[Finding]:
    """Check the image size and image tokens of LLaVA's processor, as other programs use it, on an empty image."""
    rendered = prompts.conditional_prompt(model.processor, prompt, model.placeholder)
    height, width = model.processor.image_processor(Image.new("RGB", (64, 48)), return_tensors="pt")[
        "pixel_values"
    ].shape[-2:]
    side = model.config.vision_config.image_size
    if (height, width) != (side, side):
        yield fails(
            AREA,
            "image size",
            f"the processor makes images of {width} x {height}, the vision tower takes {side} x {side}",
            "correct crop_size and size in preprocessor_config.json or processor_config.json",
        )
    tokens = _processor_tokens(model, rendered)
    if tokens == model.image_tokens:
        yield ok(AREA, "image tokens", f"{tokens}, from both processor and vision tower")
    else:
        yield note(
            AREA,
            "image tokens",
            f"the processor puts {'an unknown number of' if tokens is None else tokens} image tokens into the prompt,"
            f" the vision tower gives {model.image_tokens}; jsfree uses that of the tower, but other programs fail or"
            " misread images",
            "correct patch_size, num_additional_image_tokens and vision_feature_select_strategy in"
            " processor_config.json, or image_token_index in config.json",
        )


def _processor_tokens(model: Description, rendered: str) -> int | None:
    """Image tokens that the processor puts into a prompt; None if it cannot (old ones have no patch size)."""
    try:
        inputs = model.processor(images=Image.new("RGB", (64, 48)), text=rendered, return_tensors="pt")
    except (TypeError, ValueError, RuntimeError, KeyError):
        return None
    return int((inputs["input_ids"] == model.config.image_token_index).sum())


def _tokenizer(model: Description) -> Iterator[Finding]:
    tokenizer = model.processor.tokenizer
    tokens, vocabulary = len(tokenizer), model.config.get_text_config().vocab_size
    if tokens > vocabulary:
        yield fails(
            AREA,
            "vocabulary",
            f"the tokenizer has {tokens:,} tokens, the language model {vocabulary:,}",
            "use tokenizer and weights of one checkpoint",
        )
    if tokenizer.padding_side != "left":
        yield note(
            AREA,
            "padding side",
            f"{tokenizer.padding_side}: other programs need left padding to decode batches",
            'set "padding_side": "left" in tokenizer_config.json; jsfree itself does not pad',
        )
    else:
        yield ok(AREA, "padding side", "left, which other programs need to decode batches")


def _lengths_fit(config: RunConfig, model: Description) -> Iterator[Finding]:
    """Check that prompt, image and the longest caption fit the context."""
    context = model.config.get_text_config().max_position_embeddings
    context = min(context, window_of(model.config) or context)
    prefix = lengths(config, model).prefix
    limits = {} if config.imported else {"generate.decoding": config.generate.decoding.max_new_tokens}
    limits |= {f"evaluate.modes.{name}": mode.max_new_tokens for name, mode in config.evaluate.modes.items()}
    too_long = {name: tokens for name, tokens in limits.items() if prefix + tokens > context}
    for name, tokens in too_long.items():
        yield fails(
            AREA,
            "context",
            f"image and prompt take {prefix} positions and {name}.max_new_tokens {tokens}, together more than the"
            f" model's {context}",
            f"set {name}.max_new_tokens to {max(0, context - prefix)} or less",
        )
    if not too_long:
        yield ok(
            AREA, "context", f"{prefix} for image and prompt, up to {max(limits.values())}, of {context} positions"
        )


def lengths(config: RunConfig, model: Description) -> Lengths:
    """Lengths of the prompt with a typical image, by the tokenizer, and of captions."""
    with_image = prompts.conditional_prompt(model.processor, config.prompt, model.placeholder)
    without = prompts.unconditional_prompt(model.processor, config.prompt)
    prefix, text = (
        len(prompts.tokenize(model.processor, rendered))
        for rendered in (with_image.replace(model.placeholder, model.inputs(TYPICAL_SIZE).text), without)
    )
    return Lengths(prefix, text, caption_tokens(config), config.generate.decoding.max_new_tokens)


def estimated_lengths(config: RunConfig, shape: CaptionerShape) -> Lengths:
    """Lengths of prompt and captions, estimated without a tokenizer."""
    text = TEMPLATE_TOKENS + len(config.prompt) // CHARS_A_TOKEN
    return Lengths(shape.image_tokens + text, text, caption_tokens(config), config.generate.decoding.max_new_tokens)


def check_clip(config: RunConfig, model: ClipModel) -> Iterator[Finding]:
    """Check the files of a CLIP model, and report its image size and text context.

    Raises:
        ModelError: it is missing, gated or incomplete.
    """
    ref = clip_source(model.versioned_ref, model.pretrained).ref
    if is_elsewhere(ref, CLIP, config.models):
        yield unchecked("CLIP", ref)
        return
    look_up(ref, CLIP, config.models)
    with description_folder(ref, CLIP, config.models) as folder:
        settings = model_settings(ref, folder)
        text = settings["text_cfg"]
        require_own_text_tower(ref, text, folder)
    side, shape = settings["vision_cfg"].get("image_size", 224), shape_of(settings)
    encoded = "their own length" if shape.is_causal else "the full context, because the text tower is not causal"
    found = (
        f"{model.label}: {shape.parameters / 1e6:.3g} M weights, images of {side} pixels; sentences over"
        f" {shape.context} tokens are split, and encoded at {encoded}"
    )
    yield ok(AREA, "CLIP", found)
