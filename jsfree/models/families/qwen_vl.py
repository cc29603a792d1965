"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: native resolution and M-RoPE (arXiv 2409.12191, 2502.13923, 2511.21631).

An image of h x w merged patches has positions on three axes (time, height, width), which advance by max(h, w) for all
its tokens together. So a caption starts at ``max(positions) + 1`` on each axis, not at the number of tokens. Qwen3-VL
adds further features of the image after its first layers (DeepStack).

``image_grid_thw`` (images, 3) has the patches of each image; its pixels are flattened patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from jsfree.errors import RowError
from jsfree.models.families.base import FEATURES, PIXELS, Family, ImageInputs, Tensors, Visual

if TYPE_CHECKING:
    from PIL import Image

GRID = "image_grid_thw"
TOKEN_TYPES = "mm_token_type_ids"
MAX_ASPECT_RATIO = 200
"""Ratio of the sides beyond which the image processor refuses an image."""


class Qwen2VL(Family):
    """Qwen2-VL, and what its successors have in common with it."""

    model_class = "Qwen2VLForConditionalGeneration"
    processor_class = "Qwen2VLProcessor"
    tower: ClassVar[tuple[str, ...]] = ("visual.",)
    projector: ClassVar[tuple[str, ...]] = ("visual.merger.",)
    vision_ids: ClassVar[tuple[str, ...]] = (
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
        "vision_token_id",
    )
    vision_tokens: ClassVar[tuple[str, ...]] = ("<|vision_pad|>",)
    image_arguments: ClassVar[tuple[str, ...]] = (PIXELS, GRID)

    def inputs(self, processor: Any, config: Any, image: Image.Image) -> ImageInputs:
        """Preprocess an RGB image. Thread-safe.

        Raises:
            RowError: one side is more than 200 times the other.
        """
        if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
            raise RowError(
                "aspect_ratio",
                f"an image of {image.width} x {image.height} pixels is too thin for {config.model_type}",
                f"use images whose sides differ by a factor of at most {MAX_ASPECT_RATIO}",
            )
        return super().inputs(processor, config, image)

    def map_pixels(
        self, config: Any, image: ImageInputs, function: Callable[[torch.Tensor], torch.Tensor]
    ) -> ImageInputs:
        _, rows, columns = image.tensors[GRID][0].tolist()
        mapped = function(_from_patches(image.tensors[PIXELS], rows, columns, config.vision_config))
        return ImageInputs({**image.tensors, PIXELS: _to_patches(mapped, config.vision_config)}, image.text)

    def token_arguments(self, processor: Any, ids: Sequence[int]) -> Tensors:
        return {TOKEN_TYPES: torch.tensor(processor.create_mm_token_type_ids([list(ids)]))}

    def positions(self, model: Any, processor: Any, ids: Sequence[int], image: ImageInputs) -> torch.Tensor:
        types = self.token_arguments(processor, ids)
        found, _ = model.model.get_rope_index(torch.tensor([list(ids)]), image_grid_thw=image.tensors[GRID], **types)
        positions: torch.Tensor = found[:, 0]
        return positions

    def projectors(self, model: Any) -> list[torch.nn.Module]:
        return [model.model.visual.merger]

    def feature_numbers(self, config: Any, image: ImageInputs) -> int:
        vision = config.vision_config
        layers = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
        return image.rows * layers * int(getattr(vision, "embed_dim", vision.hidden_size))

    def project(self, model: Any, tensors: Mapping[str, torch.Tensor]) -> Visual:
        return Visual(model.model.visual.merger(tensors[FEATURES]))


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL, whose tower attends in windows and returns patches in the order of its windows."""

    model_class = "Qwen2_5_VLForConditionalGeneration"
    processor_class = "Qwen2_5_VLProcessor"

    def project(self, model: Any, tensors: Mapping[str, torch.Tensor]) -> Visual:
        from transformers.vision_utils import get_vision_window_index

        tower = model.model.visual
        merged = tower.merger(tensors[FEATURES])
        order, _ = get_vision_window_index(
            tensors[GRID],
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        return Visual(merged[torch.argsort(order).to(merged.device)])


class Qwen3VL(Qwen2VL):
    """Qwen3-VL (dense), with DeepStack."""

    model_class = "Qwen3VLForConditionalGeneration"
    processor_class = "Qwen3VLProcessor"
    projector: ClassVar[tuple[str, ...]] = ("visual.merger.", "visual.deepstack_merger_list.")

    def projectors(self, model: Any) -> list[torch.nn.Module]:
        """The mergers of the DeepStack layers, in the order in which the tower runs them, then the last one."""
        return [*model.model.visual.deepstack_merger_list, model.model.visual.merger]

    def project(self, model: Any, tensors: Mapping[str, torch.Tensor]) -> Visual:
        names = [f"{FEATURES}_{number}" if number else FEATURES for number in range(len(self.projectors(model)))]
        *layers, last = (module(tensors[name]) for module, name in zip(self.projectors(model), names, strict=True))
        return Visual(last, tuple(layers))

    def language_arguments(self, visual: Visual, is_image_BL: torch.Tensor) -> dict[str, Any]:
        return {"visual_pos_masks": is_image_BL, "deepstack_visual_embeds": list(visual.layers)}


def _from_patches(patches: torch.Tensor, rows: int, columns: int, vision: Any) -> torch.Tensor:
    """The pixels (3, height, width) of flattened patches, which are in blocks that are merged to one token."""
    side, merge, times = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    blocks = patches.view(rows // merge, columns // merge, merge, merge, 3, times, side, side)[:, :, :, :, :, 0]
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side)


def _to_patches(pixels: torch.Tensor, vision: Any) -> torch.Tensor:
    """The inverse of ``_from_patches``; an image is repeated over the patch's frames."""
    side, merge, times = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
    blocks = pixels.reshape(3, rows // merge, merge, side, columns // merge, merge, side).permute(1, 4, 2, 5, 0, 3, 6)
    repeated = blocks[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, times, -1, -1)
    return repeated.reshape(rows * columns, 3 * times * side**2)
