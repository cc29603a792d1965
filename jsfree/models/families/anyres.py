"""LLaVA-NeXT and LLaVA-OneVision: an image is read as a whole, and in tiles at a higher resolution (arXiv 2408.03326).

The number of tiles, and so that of image tokens, depends on the size of the image. The features of the tiles are put
together, cropped to the image's aspect ratio, and each row ends with a trained vector (``image_newline``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from jsfree.models.families.base import FEATURES, PIXELS, Family, ImageInputs, Tensors, Visual

SIZES = "image_sizes"
REPLACING = threading.Lock()
"""Held while a method of a model is replaced."""


class AnyResolution(Family):
    """What both families have in common."""

    hub_tower: ClassVar[str] = "vision_tower.vision_model."
    projector: ClassVar[tuple[str, ...]] = ("multi_modal_projector.", "image_newline")
    image_arguments: ClassVar[tuple[str, ...]] = (PIXELS, SIZES)

    def by_rows(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[0] if name == PIXELS else tensor

    def map_pixels(
        self, config: Any, image: ImageInputs, function: Callable[[torch.Tensor], torch.Tensor]
    ) -> ImageInputs:
        """Apply the function to the whole image and to the one that is cut into tiles."""
        pixels = image.tensors[PIXELS]
        mapped = [function(pixels[0])[None]]
        if len(pixels) > 1:
            rows, columns = _grid(config, image.tensors[SIZES][0])
            mapped.append(_cut(function(_assemble(pixels[1:], rows, columns)), rows, columns))
        return ImageInputs({**image.tensors, PIXELS: torch.cat(mapped)}, image.text)

    def features(self, model: Any, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        with _without_packing(model.model):
            return super().features(model, tensors)

    def project(self, model: Any, tensors: Mapping[str, torch.Tensor]) -> Visual:
        sizes = tensors[SIZES]
        tiles = [1 + rows * columns for rows, columns in (_grid(model.config, size) for size in sizes)]
        projected = torch.split(model.model.multi_modal_projector(tensors[FEATURES]), tiles)
        # The class's method: another thread may have replaced the model's (``_without_packing``).
        packed, _ = type(model.model).pack_image_features(
            model.model, projected, sizes, image_newline=model.model.image_newline, **self.packing(model.config)
        )
        return Visual(torch.cat(packed))

    def packing(self, config: Any) -> dict[str, Any]:
        """Further arguments of the model's ``pack_image_features``."""
        raise NotImplementedError


class LlavaNext(AnyResolution):
    """LLaVA-NeXT (1.6)."""

    model_class = "LlavaNextForConditionalGeneration"
    processor_class = "LlavaNextProcessor"

    def packing(self, config: Any) -> dict[str, Any]:
        return {"vision_feature_select_strategy": config.vision_feature_select_strategy}


class LlavaOnevision(AnyResolution):
    """LLaVA-OneVision, which scales the features of large images down."""

    model_class = "LlavaOnevisionForConditionalGeneration"
    processor_class = "LlavaOnevisionProcessor"
    vision_ids: ClassVar[tuple[str, ...]] = ("image_token_id", "video_token_id")

    def packing(self, config: Any) -> dict[str, Any]:
        return {"vision_aspect_ratio": config.vision_aspect_ratio}


@contextmanager
def _without_packing(model: Any) -> Iterator[None]:
    """Let ``get_image_features`` return its features unpacked; one thread at a time.

    Packing reads ``image_newline``, which ZeRO-3 gathers during the engine's forward only, while the features that are
    cached on disk are computed before the first one.
    """
    with REPLACING:
        model.pack_image_features = lambda image_features, *_, **__: (image_features, None)
        try:
            yield
        finally:
            del model.pack_image_features


def _grid(config: Any, size: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the tiles of an image of a size (height, width)."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    rows, columns = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
    return int(rows), int(columns)


def _assemble(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Put tiles (rows x columns, 3, side, side) together, (3, height, width)."""
    side = tiles.shape[-1]
    grid = tiles.view(rows, columns, 3, side, side).permute(2, 0, 3, 1, 4)
    return grid.reshape(3, rows * side, columns * side)


def _cut(pixels: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The inverse of ``_assemble``."""
    height, width = pixels.shape[1] // rows, pixels.shape[2] // columns
    grid = pixels.reshape(3, rows, height, columns, width).permute(1, 3, 0, 2, 4)
    return grid.reshape(rows * columns, 3, height, width)
