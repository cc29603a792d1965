"""The interface of a model family. Engine, training, stages and serving know only this.

A family has no state: model, processor and configuration are passed to it. What a family does not override is common to
transformers' image-language models: the projected features of the tower replace the embeddings of the image tokens, in
their order, and a language model with causal attention reads the result.

Shape suffixes: A axes of positions (1, or 3 for M-RoPE), L tokens of a prompt, B rows of a batch, N image tokens,
D width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

if TYPE_CHECKING:
    from PIL import Image

PIXELS, FEATURES = "pixel_values", "features"
"""Names of the tensors of an image before and after the vision tower."""
Tensors = dict[str, torch.Tensor]
TYPICAL_SIZE = (640, 480)
"""Width and height of a usual photograph, such as most of COCO's."""
Part = str
TOWER, PROJECTOR, LANGUAGE = "tower", "projector", "language"
"""Parts of a model: the vision tower, which is always frozen, the projector, and the language model with its head."""


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """What a model takes for one image, on the CPU.

    ``tensors`` has the image arguments of the model's forward by their names, or features of the vision tower in place
    of ``PIXELS``. The first axis is that of the image's tiles or patches (one for models without either), so the
    tensors of several images are concatenated.
    """

    tensors: Mapping[str, torch.Tensor]
    text: str
    """What the processor writes into a prompt in the place of the image."""

    @property
    def rows(self) -> int:
        """Length of the first axis: tiles or patches."""
        return len(self.tensors[PIXELS])


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt, and their positions (A, L)."""

    ids: list[int]
    positions: torch.Tensor

    @classmethod
    def of_text(cls, ids: Sequence[int]) -> Prompt:
        """A prompt with one axis of positions, which count its tokens."""
        return cls(list(ids), torch.arange(len(ids))[None])

    @property
    def next_position(self) -> int:
        """Position of the token after the prompt, the same on all axes."""
        return 1 + int(self.positions.max())

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> Prompt:
        """The prompt's first ``count`` tokens."""
        return Prompt(self.ids[:count], self.positions[:, :count])


@dataclass(frozen=True)
class Visual:
    """Projected features of the images of a batch, (N, D)."""

    embeddings: torch.Tensor
    layers: tuple[torch.Tensor, ...] = ()
    """Features that are added after each of the first layers, (N, D) (DeepStack)."""


def join_images(images: Sequence[ImageInputs]) -> Tensors:
    """Concatenate the tensors of several images."""
    return {name: torch.cat([image.tensors[name] for image in images]) for name in images[0].tensors}


def moved(tensors: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> Tensors:
    """Tensors on a device; numbers with a fraction are converted to ``dtype``."""
    return {
        name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in tensors.items()
    }


def typical_image() -> Image.Image:
    """A black image of the size of a usual photograph, for estimates."""
    from PIL import Image

    return Image.new("RGB", TYPICAL_SIZE)


class Family:
    """A family of models."""

    model_class: ClassVar[str]
    """Class of transformers that generates text."""
    processor_class: ClassVar[str]
    tower_types: ClassVar[tuple[str, ...]] = ()
    """Types of vision towers that models of the family may have; empty where all have the same."""
    tower: ClassVar[tuple[str, ...]] = ("vision_tower.",)
    """Parts of the names of the vision tower's parameters, in transformers and in files of weights."""
    projector: ClassVar[tuple[str, ...]] = ("multi_modal_projector.",)
    """Parts of the names of the projector's parameters; they take precedence over ``tower``."""
    hub_tower: ClassVar[str] = "vision_tower."
    """Beginning of the names of the vision tower's parameters in checkpoints on the hub, if it is ``vision_tower.`` in
    those that transformers writes. Transformers omits the level ``vision_model.``, which other programs expect."""
    vision_ids: ClassVar[tuple[str, ...]] = ("image_token_id",)
    """Attributes of configuration or processor with ids of tokens that stand for vision."""
    vision_tokens: ClassVar[tuple[str, ...]] = ()
    """Further tokens that stand for vision, whose ids neither configuration nor processor has."""
    image_arguments: ClassVar[tuple[str, ...]] = (PIXELS,)
    """Outputs of the image processor that the model takes."""
    image_options: ClassVar[Mapping[str, Any]] = {}
    """Options of the image processor."""
    has_image_blocks: ClassVar[bool] = False
    """Whether the tokens of an image attend to each other in both directions."""
    pads_images: ClassVar[bool] = False
    """Whether ``captioner.preprocessing: pad`` is defined for it."""

    def part_of(self, name: str) -> Part:
        """The part of the model to which a parameter belongs, by its name in transformers or in a file."""
        if any(part in name for part in self.projector):
            return PROJECTOR
        return TOWER if any(part in name for part in self.tower) else LANGUAGE

    def load_processor(self, folder: Path) -> Any:
        """Load the processor from a folder.

        Raises:
            ModelError: a package that it requires is not installed.
            OSError: a file is missing.
            ValueError: a file is damaged.
        """
        import transformers

        return getattr(transformers, self.processor_class).from_pretrained(folder, local_files_only=True)

    def inputs(self, processor: Any, config: Any, image: Image.Image) -> ImageInputs:
        """Preprocess an RGB image. Thread-safe."""
        outputs = processor.image_processor(images=image, return_tensors="pt", **self.image_options)
        tensors = {name: self.by_rows(name, outputs[name]) for name in self.image_arguments}
        return ImageInputs(tensors, self.image_text(processor, config, outputs))

    def by_rows(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """An output of the image processor for one image, with rows as its first axis."""
        return tensor

    def image_text(self, processor: Any, config: Any, outputs: Mapping[str, Any]) -> str:
        """The text that stands for an image in a prompt, given what the image processor returned for it."""
        return str(processor.replace_image_token(outputs, 0))

    def placeholder(self, processor: Any) -> str:
        """The text that a chat template writes in the place of an image."""
        return str(processor.image_token)

    def map_pixels(
        self, config: Any, image: ImageInputs, function: Callable[[torch.Tensor], torch.Tensor]
    ) -> ImageInputs:
        """Apply a function to the preprocessed pixels, (3, height, width), of each picture that the tower sees."""
        pixels = torch.stack([function(canvas) for canvas in image.tensors[PIXELS]])
        return ImageInputs({**image.tensors, PIXELS: pixels}, image.text)

    def token_arguments(self, processor: Any, ids: Sequence[int]) -> Tensors:
        """Arguments of the forward of a prompt with an image that depend on its tokens, (1, L) each."""
        return {}

    def positions(self, model: Any, processor: Any, ids: Sequence[int], image: ImageInputs) -> torch.Tensor:
        """Positions of the tokens of a prompt with an image, (A, L)."""
        return torch.arange(len(ids))[None]

    def language_model(self, model: Any) -> Any:
        """The language model without its head."""
        return model.model.language_model

    def projectors(self, model: Any) -> list[torch.nn.Module]:
        """The modules that read the vision tower's outputs."""
        return [model.model.multi_modal_projector]

    def features(self, model: Any, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Outputs of the frozen vision tower that each of ``projectors`` reads, rows first.

        They are taken from transformers' own computation of an image's features, so that they are what it would use.
        Thread-safe.

        Args:
            tensors: as of ``join_images``.
        """
        read: list[torch.Tensor] = []
        caller = threading.get_ident()

        def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if threading.get_ident() == caller:  # other threads' calls of the same model run this hook too
                read.append(inputs[0])

        hooks = [module.register_forward_pre_hook(keep) for module in self.projectors(model)]
        try:
            model.model.get_image_features(**tensors)
        finally:
            for hook in hooks:
                hook.remove()
        return {f"{FEATURES}_{number}" if number else FEATURES: tensor for number, tensor in enumerate(read)}

    def feature_numbers(self, config: Any, image: ImageInputs) -> int:
        """How many numbers ``features`` returns for an image; an estimate."""
        vision, layers = config.vision_config, getattr(config, "vision_feature_layer", -1)
        sides = [size[0] if isinstance(size, list | tuple) else size for size in (vision.image_size, vision.patch_size)]
        patches = int(sides[0] // sides[1]) ** 2
        return image.rows * patches * int(vision.hidden_size) * (1 if isinstance(layers, int) else len(layers))

    def project(self, model: Any, tensors: Mapping[str, torch.Tensor]) -> Visual:
        """Run the projector.

        Args:
            tensors: as of ``join_images``, with the tensors that ``features`` returns.
        """
        (projector,) = self.projectors(model)
        return Visual(projector(tensors[FEATURES]).flatten(0, 1))

    def hub_weights(self, model: Any, weights: Tensors) -> Tensors:
        """Weights in the key layout of the family's checkpoints on the hub, given by the names of the parameters."""
        from transformers.core_model_loading import revert_weight_conversion

        return {self._hub_key(name): tensor for name, tensor in revert_weight_conversion(model, weights).items()}

    def _hub_key(self, name: str) -> str:
        if not name.startswith("vision_tower.") or name.startswith(self.hub_tower):
            return name
        return self.hub_tower + name.removeprefix("vision_tower.")

    def language_arguments(self, visual: Visual, is_image_BL: torch.Tensor) -> dict[str, Any]:
        """Further arguments of the language model for a batch with images."""
        return {}


def vision_ids(family: Family, config: Any, processor: Any) -> frozenset[int]:
    """Ids of the tokens that stand for images and videos, or for their begin and end."""
    found: set[int | None] = set()
    for name in family.vision_ids:
        for owner in (config, processor):
            ids = getattr(owner, name, None)
            found |= set(ids) if isinstance(ids, list | tuple) else {ids}
    vocabulary = processor.tokenizer.get_vocab() if family.vision_tokens else {}
    found |= {vocabulary.get(token) for token in family.vision_tokens}
    return frozenset(token for token in found if token is not None)


def split_features(features: Mapping[str, torch.Tensor], images: Sequence[ImageInputs]) -> list[ImageInputs]:
    """Distribute the features of a batch to its images, which keep all tensors but their pixels."""
    rows = [image.rows for image in images]
    parts = {name: torch.split(tensor, rows) for name, tensor in features.items()}
    return [
        ImageInputs(
            {name: tensor for name, tensor in image.tensors.items() if name != PIXELS}
            | {name: part[number] for name, part in parts.items()},
            image.text,
        )
        for number, image in enumerate(images)
    ]
