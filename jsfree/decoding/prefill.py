"""Prefill of prompts: with an image for the conditional path, without or with a noised one for the second path.

Shape suffixes: V vocabulary, W views of an image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from jsfree.decoding.mixing import add_diffusion_noise
from jsfree.decoding.requests import Request
from jsfree.decoding.views import views_of
from jsfree.decoding.workload import Requirement
from jsfree.models.families.base import ImageInputs, Prompt
from jsfree.models.loading import Captioner
from jsfree.models.prompts import ChatPrompt

if TYPE_CHECKING:
    from transformers import DynamicCache

CACHED_PROMPTS = 64


@dataclass(frozen=True)
class Prefilled:
    """Keys and values of prefixes, one a view of an image, or of the one prefix without image."""

    cache: DynamicCache
    logits_WV: torch.Tensor
    """Logits of the token after each prefix: minus infinity for tokens that must not be drawn."""
    next_position: int
    """Position of the token after each prefix."""


class Prefill:
    """Runs the model over prompts, one image at a time, so that no caption's arithmetic depends on other captions."""

    def __init__(self, captioner: Captioner) -> None:
        self._captioner = captioner
        self._texts: OrderedDict[ChatPrompt, Prefilled] = OrderedDict()

    def requirement(self, request: Request) -> Requirement:
        """Tokens that a request takes at most. Thread-safe."""
        image = request.image
        return Requirement(
            image_prefix=0 if image is None else len(self._captioner.prompt_ids(request.prompt, image)),
            text_prefix=len(self._captioner.prompt_ids(request.prompt, None)),
            caption=request.decoding.max_new_tokens,
        )

    def image_prefix(self, request: Request) -> Prefilled:
        """Prefill the views of a request's image with its prompt."""
        assert request.image is not None
        views = views_of(self._captioner, request.image, request.decoding.views)
        return self._run(self._captioner.prompt(request.prompt, request.image), views)

    def noised_prefix(self, request: Request, noise_step: int) -> Prefilled:
        """Prefill a request's image, noised, with its prompt."""
        assert request.image is not None
        noised = self._captioner.map_pixels(request.image, partial(add_diffusion_noise, step=noise_step))
        return self._run(self._captioner.prompt(request.prompt, request.image), [noised])

    def text_prefix(self, text: ChatPrompt) -> Prefilled:
        """Prefill a prompt without image, or return the cached prefill."""
        if text not in self._texts:
            self._texts[text] = self._run(self._captioner.prompt(text, None), [])
            if len(self._texts) > CACHED_PROMPTS:  # a server meets any number of prompts
                self._texts.popitem(last=False)
        self._texts.move_to_end(text)
        return self._texts[text]

    def _run(self, prompt: Prompt, images: Sequence[ImageInputs]) -> Prefilled:
        """Prefill a prompt with each of some images, or without any."""
        from transformers import DynamicCache

        model = self._captioner.model
        cache = DynamicCache(config=model.config.get_text_config())
        ids = torch.tensor([prompt.ids], device=self._captioner.device).expand(max(1, len(images)), -1)
        arguments = self._captioner.forward_arguments(prompt.ids, images) if images else {}
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **arguments)
        return Prefilled(cache, self._captioner.suppress(output.logits[:, -1]), prompt.next_position)
