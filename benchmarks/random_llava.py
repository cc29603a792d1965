"""LLaVA models with random weights for benchmarks: as fast as trained ones, without a download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jsfree.models.families.base import PIXELS, ImageInputs
from jsfree.models.families.llava import visual_tokens
from jsfree.models.loading import Captioner
from jsfree.sizing import shapes

PROMPT_TOKENS = 24
BEGIN, WORD = 1, 10


@dataclass(frozen=True)
class RandomCaptioner(Captioner):
    """A captioner with token ids for words, which never draws the end token."""

    prompt_tokens: int = PROMPT_TOKENS

    def prompt_ids(self, text: str, image: ImageInputs | None) -> list[int]:  # noqa: ARG002 - as a captioner's
        words = [WORD + number for number in range(self.prompt_tokens)]
        seen = [self.model.config.image_token_id] * visual_tokens(self.model.config) if image else []
        return [BEGIN, *words[:4], *seen, *words[4:]]

    @property
    def eos_ids(self) -> frozenset[int]:  # type: ignore[override]
        return frozenset()

    @property
    def suppressed_ids(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.model.config.image_token_index,)

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))

    @property
    def blank(self) -> ImageInputs:  # type: ignore[override]
        return self.random_images(1)[0]

    def random_images(self, count: int, seed: int = 0) -> list[ImageInputs]:
        """Images of random pixels."""
        side = self.model.config.vision_config.image_size
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randn(count, 3, side, side, generator=generator)
        return [ImageInputs({PIXELS: each}, "") for each in pixels.split(1)]


def tiny(patches: int) -> RandomCaptioner:
    """A LLaVA of about 6M parameters with ``patches`` squared visual tokens, on the CPU."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        image_size=8 * patches, patch_size=8, projection_dim=96,
    )  # fmt: skip
    language = LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        vocab_size=4096, max_position_embeddings=1024,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=language, image_token_index=4, image_seq_length=patches**2,
        vision_feature_layer=-2, vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
    return _built(config, torch.float32, "cpu")


def of_shape(shape: shapes.LlavaShape, dtype: torch.dtype, device: str) -> RandomCaptioner:
    """A LLaVA of a given shape."""
    return _built(shapes.llava_config(shape), dtype, device)


def _built(config: Any, dtype: torch.dtype, device: str) -> RandomCaptioner:
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    return RandomCaptioner(model.eval(), None)  # type: ignore[arg-type]
