"""Gemma 3 (arXiv 2503.19786): an image's tokens attend to each other in both directions; most layers have a window.

Images are not cropped further (``do_pan_and_scan``), so each takes 256 image tokens. Image, prompt and caption must fit
into the window (1,024 tokens), in which windowed layers are the same as full ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from jsfree.models.families.base import Family, Tensors


class Gemma3(Family):
    """Gemma 3 with images (4B and larger)."""

    model_class = "Gemma3ForConditionalGeneration"
    processor_class = "Gemma3Processor"
    hub_tower: ClassVar[str] = "vision_tower.vision_model."
    vision_ids: ClassVar[tuple[str, ...]] = ("image_token_id", "boi_token_index", "eoi_token_index")
    image_options: ClassVar[dict[str, bool]] = {"do_pan_and_scan": False}
    has_image_blocks: ClassVar[bool] = True

    def token_arguments(self, processor: Any, ids: Sequence[int]) -> Tensors:
        return {"token_type_ids": torch.tensor(processor.create_mm_token_type_ids([list(ids)]))}
