"""Prefill of prompts: with an image for the conditional path, without or with a noised one for the second path."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from jsfree.decoding.mixing import add_diffusion_noise
from jsfree.decoding.requests import Request
from jsfree.decoding.workload import Requirement
from jsfree.models.loading import Captioner

if TYPE_CHECKING:
    from transformers import DynamicCache

CACHED_PROMPTS = 64


@dataclass(frozen=True)
class Prefilled:
    """Keys and values of a prefix, and the logits of the token after it: minus infinity where it must not be drawn."""

    cache: DynamicCache
    logits_V: torch.Tensor


@dataclass
class _Prompt:
    """Token ids of a prompt, (1, length) each, and its prefill without image, which is made once."""

    with_image: torch.Tensor
    without_image: torch.Tensor
    prefilled: Prefilled | None = None


class Prefill:
    """Runs the model over prompts, one at a time, so that no caption's arithmetic depends on other captions."""

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

    def image_prefix(self, pixels: torch.Tensor, prompt: str, noise_step: int | None = None) -> Prefilled:
        """Prefill an image, noised if ``noise_step`` is given, with its prompt."""
        shown = pixels if noise_step is None else add_diffusion_noise(pixels, noise_step)
        return self._run(self._prompt(prompt).with_image, self._captioner.batch([shown]))

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
        ids = ids.to(self._captioner.device)
        output = model(input_ids=ids, pixel_values=pixels, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return Prefilled(cache, self._captioner.suppress(output.logits[0, -1]))

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
