"""InternVL 3 and 3.5 in the layout of transformers: pixels are shuffled between tower and projector (arXiv 2504.10479).

Images are not cut into tiles (``crop_to_patches``), so each takes 256 image tokens, whatever its size.
"""

from __future__ import annotations

from typing import ClassVar

from jsfree.models.families.base import Family


class InternVL(Family):
    """InternVL with one tile an image."""

    model_class = "InternVLForConditionalGeneration"
    processor_class = "InternVLProcessor"
    vision_ids: ClassVar[tuple[str, ...]] = ("image_token_id", "image_token_ids", "video_token_id", "video_token_ids")
    vision_tokens: ClassVar[tuple[str, ...]] = ("<video>",)
    image_options: ClassVar[dict[str, bool]] = {"crop_to_patches": False}
