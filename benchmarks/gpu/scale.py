"""Sizes of the check: LLaVA-1.5's shapes on a GPU, or tiny ones on a CPU core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jsfree.sizing.shapes import PUBLISHED, LlavaShape, TransformerShape

TINY_SHAPE = LlavaShape(
    TransformerShape(hidden=64, layers=4, heads=2, intermediate=128),
    vision=TransformerShape(hidden=32, layers=2, heads=2, intermediate=64),
    image_size=56,
)
TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 56, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@dataclass(frozen=True)
class Scale:
    """Sizes and limits of the steps."""

    name: str
    device: str
    seconds: float
    """Time for everything."""
    patience: float
    """Factor of the steps' time limits, for a CPU shared with other work."""
    shape_7b: LlavaShape
    shape_13b: LlavaShape
    clip: dict[str, Any] | None
    """open_clip's description of a model; None is its ViT-L-14-336."""
    caption: int
    """Tokens of a caption, in measurements of speed."""
    slots: tuple[int, int]
    most_slots: int
    """More than fit into any GPU's memory."""
    exact_images: int
    exact_tokens: int
    scored_images: int
    pairs: int
    """Pairs of a training step, in measurements of speed."""
    train_steps: int
    round_images: int
    round_epochs: int
    evaluated_images: int
    copied_bytes: int
    matrix: int
    """Rows of the square matrices whose product is timed."""


GPU = Scale(
    name="gpu",
    device="cuda",
    seconds=470,
    patience=1,
    shape_7b=PUBLISHED["llava-hf/llava-1.5-7b-hf"],
    shape_13b=PUBLISHED["llava-hf/llava-1.5-13b-hf"],
    clip=None,
    caption=128,
    slots=(16, 64),
    most_slots=512,
    exact_images=6,
    exact_tokens=24,
    scored_images=256,
    pairs=4,
    train_steps=4,
    round_images=1024,
    round_epochs=6,
    evaluated_images=256,
    copied_bytes=4 * 2**30,
    matrix=8192,
)
TINY = Scale(
    name="tiny",
    device="cpu",
    seconds=1200,
    patience=5,
    shape_7b=TINY_SHAPE,
    shape_13b=TINY_SHAPE,
    clip=TINY_CLIP,
    caption=24,
    slots=(2, 4),
    most_slots=8,
    exact_images=2,
    exact_tokens=6,
    scored_images=4,
    pairs=2,
    train_steps=1,
    round_images=16,
    round_epochs=2,
    evaluated_images=4,
    copied_bytes=16 * 2**20,
    matrix=256,
)
