"""SmolVLM and Idefics3: a SigLIP tower whose pixels are shuffled in the connector (arXiv 2408.12637, 2504.05299).

Images are not cut into tiles (``do_image_splitting``), so each takes the tokens of one tile (64 to 169).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch

from jsfree.errors import ModelError
from jsfree.models.families.base import PIXELS, Family, ImageInputs

MOST_TILES = 6
"""Rows and columns of tiles for which the processors have tokens."""


class Idefics3(Family):
    """Idefics3 and the first SmolVLM."""

    model_class = "Idefics3ForConditionalGeneration"
    processor_class = "Idefics3Processor"
    tower: ClassVar[tuple[str, ...]] = ("vision_model.",)
    projector: ClassVar[tuple[str, ...]] = ("connector.",)
    vision_tokens: ClassVar[tuple[str, ...]] = (
        "<fake_token_around_image>",
        "<global-img>",
        "<video>",
        *(f"<row_{row}_col_{column}>" for row in range(1, MOST_TILES + 1) for column in range(1, MOST_TILES + 1)),
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
    """SmolVLM 2, whose processor requires the package ``num2words`` also for images."""

    model_class = "SmolVLMForConditionalGeneration"
    processor_class = "SmolVLMProcessor"

    def load_processor(self, folder: Path) -> Any:
        if find_spec("num2words") is None:
            raise ModelError(
                f"the processor of SmolVLM in {folder} requires the package num2words, which is not installed",
                "install the extra 'smolvlm' (uv sync --extra smolvlm) on every node",
            )
        return super().load_processor(folder)
