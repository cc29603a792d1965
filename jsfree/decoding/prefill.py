"""What is computed before a caption's first token: image and prompt for the first path, the second path's own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from jsfree.decoding.memory import Need
from jsfree.decoding.mixing import noised
from jsfree.decoding.requests import Request
from jsfree.models.loading import Captioner

if TYPE_CHECKING:
    from transformers import DynamicCache

PROMPTS_KEPT = 64


@dataclass(frozen=True)
class Prefilled:
    """Keys and values of a path's beginning, and the logits of the token behind it."""

    cache: DynamicCache
    logits_V: torch.Tensor


@dataclass
class _Prompt:
    """A prompt's token ids, (1, length) each, and its prefill without image, which is made once."""

    with_image: torch.Tensor
    without_image: torch.Tensor
    prefilled: Prefilled | None = None


class Prefill:
    """Runs the model over prompts, one at a time, so that no caption's arithmetic depends on another's."""

    def __init__(self, captioner: Captioner) -> None:
        self._captioner = captioner
        self._prompts: OrderedDict[str, _Prompt] = OrderedDict()
        self._lock = threading.Lock()  # a server asks what requests need while others are decoded

    def need(self, request: Request) -> Need:
        """What a request asks of the memory for keys and values."""
        prompt = self._prompt(request.prompt)
        return Need(prompt.with_image.shape[1], prompt.without_image.shape[1], request.decoding.max_new_tokens)

    def image(self, pixels: torch.Tensor, prompt: str, noise_step: int | None = None) -> Prefilled:
        """Prefill an image, noised where asked, with its prompt."""
        seen = pixels if noise_step is None else noised(pixels, noise_step)
        return self._run(self._prompt(prompt).with_image, self._captioner.batch([seen]))

    def text(self, prompt: str) -> Prefilled:
        """Prefill a prompt without image, or what was kept of it."""
        of = self._prompt(prompt)
        if of.prefilled is None:
            of.prefilled = self._run(of.without_image, None)
        return of.prefilled

    def _run(self, ids: torch.Tensor, pixels: torch.Tensor | None) -> Prefilled:
        from transformers import DynamicCache

        model = self._captioner.model
        cache = DynamicCache(config=model.config.get_text_config())
        ids = ids.to(self._captioner.device)
        output = model(input_ids=ids, pixel_values=pixels, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return Prefilled(cache, output.logits[0, -1])

    def _prompt(self, text: str) -> _Prompt:
        with self._lock:
            if text not in self._prompts:
                with_image, without_image = (
                    torch.tensor([self._captioner.prompt_ids(text, image=image)]) for image in (True, False)
                )
                self._prompts[text] = _Prompt(with_image, without_image)
                if len(self._prompts) > PROMPTS_KEPT:  # a server is asked without end
                    self._prompts.popitem(last=False)
            self._prompts.move_to_end(text)
            return self._prompts[text]
