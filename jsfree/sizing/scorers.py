"""Size of a scorer: parameters, and operations for an image and for a sentence.

The model is built on the meta device, without weights and without computing anything, and its operations are counted by
torch. That is exact for any architecture that open_clip knows.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from jsfree.config import ClipModel
from jsfree.errors import ModelError
from jsfree.models.clip import known_settings
from jsfree.models.clip_text import causal_tower

SENTENCE_TOKENS = 16
"""Tokens of a sentence, with its start and end."""
SENTENCES = 20
"""Sentences of the two captions of an image."""


@dataclass(frozen=True)
class ScorerShape:
    """Size of a scorer.

    Attributes:
        parameters: number of weights, which are float32.
        image_flops: operations for an image.
        text_flops: operations for a text of the full context.
        context: tokens of the text context.
        is_causal: whether padding is cut, so that a sentence costs its own length only.
    """

    parameters: int
    image_flops: float
    text_flops: float
    context: int
    is_causal: bool

    @property
    def bytes(self) -> float:
        """Weights, and the activations of a batch of 64 images, estimated as half of that."""
        return 6.0 * self.parameters

    @property
    def pair_flops(self) -> float:
        """Operations for an image and the sentences of two captions."""
        share = min(1.0, SENTENCE_TOKENS / self.context) if self.is_causal else 1.0
        return self.image_flops + SENTENCES * share * self.text_flops


TYPICAL = ScorerShape(parameters=428_000_000, image_flops=3.82e11, text_flops=1.33e10, context=77, is_causal=True)
"""ViT-L/14 at 336 pixels, assumed for a scorer whose configuration is elsewhere."""


@cache
def scorer_shape(model: ClipModel) -> ScorerShape:
    """The size of a scorer, or ``TYPICAL`` if its configuration is not on this machine."""
    try:
        settings = known_settings(model.versioned_ref, model.pretrained)
    except ModelError:  # the check of the model reports it
        return TYPICAL
    return TYPICAL if settings is None else shape_of(settings)


def shape_of(settings: dict[str, Any]) -> ScorerShape:
    """The size of a model with open_clip's configuration ``settings`` (``model_cfg``).

    Raises:
        ModelError: open_clip cannot build such a model.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.inference_mode():
        model = _built(settings)
        side, context = _side(settings), int(model.context_length)
        with FlopCounterMode(display=False) as image:
            model.encode_image(torch.empty(1, 3, side, side))
        with FlopCounterMode(display=False) as text:
            model.encode_text(torch.zeros(1, context, dtype=torch.long))
    return ScorerShape(
        parameters=sum(weight.numel() for weight in model.parameters()),
        image_flops=float(image.get_total_flops()),
        text_flops=float(text.get_total_flops()),
        context=context,
        is_causal=causal_tower(model) is not None,
    )


def _built(settings: dict[str, Any]) -> Any:
    """The model, on the current device."""
    import open_clip

    own = deepcopy(settings)
    model_class = open_clip.CustomTextCLIP if own.pop("custom_text", False) else open_clip.CLIP
    try:
        return model_class(**own).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"open_clip cannot build the CLIP model: {error}", "use a CLIP model with two towers"
        ) from error


def _side(settings: dict[str, Any]) -> int:
    """Side of the images in pixels."""
    size = settings["vision_cfg"].get("image_size", 224)
    return int(size[0] if isinstance(size, list | tuple) else size)
