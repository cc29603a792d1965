"""SmolVLM and Idefics3: a SigLIP tower whose pixels are shuffled in the connector (arXiv 2408.12637, 2504.05299).

Images are not cut into tiles (``do_image_splitting``), so each takes the tokens of one tile (64 to 169).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from jsfree.models.families.base import PIXELS, Family, ImageInputs


class Idefics3(Family):
    """Idefics3."""

    model_class = "Idefics3ForConditionalGeneration"
    processor_class = "Idefics3Processor"
    tower: ClassVar[tuple[str, ...]] = ("vision_model.",)
    projector: ClassVar[tuple[str, ...]] = ("connector.",)
    vision_ids: ClassVar[tuple[str, ...]] = (
        "image_token_id",
        "fake_image_token_id",
        "global_image_token_id",
        "row_col_ids",
        "video_token_id",
    )
    image_arguments: ClassVar[tuple[str, ...]] = (PIXELS, "pixel_attention_mask")
    image_options: ClassVar[dict[str, bool]] = {"do_image_splitting": False, "return_row_col_info": True}

    def map_pixels(
        self, config: Any, image: ImageInputs, function: Callable[[torch.Tensor], torch.Tensor]
    ) -> ImageInputs:
        mapped = function(image.tensors[PIXELS][0, 0])[None, None]
        return ImageInputs({**image.tensors, PIXELS: mapped}, image.text)

    def language_model(self, model: Any) -> Any:
        return model.model.text_model

    def projectors(self, model: Any) -> list[torch.nn.Module]:
        return [model.model.connector]


class SmolVLM(Idefics3):
    """SmolVLM 2; the first SmolVLM is of type ``idefics3``."""

    model_class = "SmolVLMForConditionalGeneration"
    processor_class = "SmolVLMProcessor"
