"""Prefill of prompts: with an image for the conditional path, without or with a noised one for the second path.

Shape suffixes: V vocabulary, W views of an image.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from jsfree.decoding.mixing import add_diffusion_noise
from jsfree.decoding.requests import Request
from jsfree.decoding.views import views_of
from jsfree.decoding.workload import Requirement
from jsfree.models.loading import Captioner

if TYPE_CHECKING:
    from transformers import DynamicCache

CACHED_PROMPTS = 64


@dataclass(frozen=True)
class Prefilled:
    """Keys and values of prefixes, one a view of an image, or of the one prefix without image."""

    cache: DynamicCache
    logits_WV: torch.Tensor
    """Logits of the token after each prefix: minus infinity for tokens that must not be drawn."""


@dataclass
class _Prompt:
    """Token ids of a prompt, (1, length) each, and its prefill without image, which is made once."""

    with_image: torch.Tensor
    without_image: torch.Tensor
    prefilled: Prefilled | None = None


class Prefill:
    """Runs the model over prompts, one image at a time, so that no caption's arithmetic depends on other captions."""

    def __init__(self, captioner: Captioner) -> None:
        self._captioner = captioner
        self._prompts: OrderedDict[str, _Prompt] = OrderedDict()
        self._lock = threading.Lock()  # a server calls requirement() from another thread

    def requirement(self, request: Request) -> Requirement:
        """Tokens that a request takes at most. Thread-safe."""
        prompt = self._prompt(request.prompt)
        return Requirement(
            image_prefix=prompt.with_image.shape[1],
            text_prefix=prompt.without_image.shape[1],
            caption=request.decoding.max_new_tokens,
        )

    def image_prefix(self, request: Request) -> Prefilled:
        """Prefill the views of a request's image with its prompt."""
        views = views_of(request.pixels, request.decoding.views)
        return self._run(self._prompt(request.prompt).with_image, self._captioner.batch(list(views)))

    def noised_prefix(self, request: Request, noise_step: int) -> Prefilled:
        """Prefill a request's image, noised, with its prompt."""
        noised = add_diffusion_noise(request.pixels, noise_step)
        return self._run(self._prompt(request.prompt).with_image, self._captioner.batch([noised]))

    def text_prefix(self, text: str) -> Prefilled:
        """Prefill a prompt without image, or return the cached prefill."""
        prompt = self._prompt(text)
        if prompt.prefilled is None:
            prompt.prefilled = self._run(prompt.without_image, None)
        return prompt.prefilled

    def _run(self, ids: torch.Tensor, pixels: torch.Tensor | None) -> Prefilled:
        from transformers import DynamicCache

        model = self._captioner.model
        cache = DynamicCache(config=model.config.get_text_config())
        ids = ids.to(self._captioner.device).expand(1 if pixels is None else len(pixels), -1)
        output = model(input_ids=ids, pixel_values=pixels, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return Prefilled(cache, self._captioner.suppress(output.logits[:, -1]))

    def _prompt(self, text: str) -> _Prompt:
        with self._lock:
            if text not in self._prompts:
                with_image, without_image = (
                    torch.tensor([self._captioner.prompt_ids(text, image=image)]) for image in (True, False)
                )
                self._prompts[text] = _Prompt(with_image, without_image)
                if len(self._prompts) > CACHED_PROMPTS:  # a server meets any number of prompts
                    self._prompts.popitem(last=False)
            self._prompts.move_to_end(text)
            return self._prompts[text]
