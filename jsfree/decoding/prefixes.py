"""Captions in flight, and the prefilled prefixes that they share.

Shape suffixes: V vocabulary, W views of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from jsfree.config import Views
from jsfree.decoding.requests import Request, TokenLogp
from jsfree.decoding.sampling import NoiseStream
from jsfree.models.prompts import ChatPrompt

if TYPE_CHECKING:
    from jsfree.decoding.cache import KvCache
    from jsfree.decoding.prefill import Prefill
    from jsfree.models.families.base import ImageInputs


@dataclass
class ActiveCaption:
    """A caption in its slot."""

    request: Request
    noise: NoiseStream
    image: int | None = None
    """The image whose prefixes it reads."""
    reader: int = 0
    """Its number among the readers of that image."""
    second_row: int | None = None
    """Row of its second path."""
    second_prefix: int | None = None
    """The prefix that its second path reads: a text prefix, or that of the noised image."""
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    """Log-probabilities of ``tokens``, if the request asks for them."""
    unconditional_logps: list[float] = field(default_factory=list)
    """The same of the unconditional path, if the caption has one."""
    token_logps: list[TokenLogp] = field(default_factory=list)
    """Those of the distribution that was drawn from, if the request asks for them."""

    @property
    def forced_token(self) -> int | None:
        """The next token, if the request's prefix determines it."""
        return self.request.prefix[len(self.tokens)] if len(self.tokens) < len(self.request.prefix) else None


@dataclass
class PrefilledImage:
    """An image whose views are prefilled with a prompt."""

    image: ImageInputs | None
    prompt: ChatPrompt
    views: Views
    readers: list[int | None]
    """Slots of the captions that read it."""
    logits_WV: torch.Tensor
    """Logits of the first token, by view."""
    second_logits_V: torch.Tensor | None = None
    """Logits of the second path's first token, if it sees the noised image."""

    def matches(self, request: Request) -> bool:
        """Whether its prefixes are those of a request."""
        return self.image is request.image and self.prompt == request.prompt and self.views == request.decoding.views

    @property
    def idle(self) -> bool:
        """Whether no caption reads it."""
        return all(reader is None for reader in self.readers)


class PrefilledImages:
    """Prefilled images by their number. Image i has the prefixes i W to i W + W - 1 of the cache, one a view.

    The prefixes of noised images follow those of all images.
    """

    def __init__(self, count: int, readers: int, views: int) -> None:
        """Prepare.

        Args:
            count: number of images.
            readers: captions that may read an image at a time.
            views: most views of an image, W.
        """
        self._images: list[PrefilledImage | None] = [None] * count
        self._readers, self._views = readers, views

    def __getitem__(self, number: int) -> PrefilledImage:
        image = self._images[number]
        assert image is not None
        return image

    def prefix(self, number: int, view: int = 0) -> int:
        """The cache's number of the prefix of an image's view."""
        return number * self._views + view

    def noised_prefix(self, number: int) -> int:
        """The cache's number of the prefix of a noised image."""
        return len(self._images) * self._views + number

    def load(self, request: Request, number: int, prefill: Prefill, cache: KvCache) -> PrefilledImage:
        """The image of a request at ``number``; prefilled and stored there if it is not there yet."""
        if not self._serves(request, number):
            prefilled = prefill.image_prefix(request)
            cache.store_image_prefixes(self.prefix(number), prefilled.cache, prefilled.next_position)
            readers: list[int | None] = [None] * self._readers
            self._images[number] = PrefilledImage(
                request.image, request.prompt, request.decoding.views, readers, prefilled.logits_WV
            )
        return self[number]

    def load_noised(
        self, request: Request, number: int, noise_step: int, prefill: Prefill, cache: KvCache
    ) -> torch.Tensor:
        """First logits of a second path that sees the noised image, (V,); prefilled once for each image."""
        image = self[number]
        if image.second_logits_V is None:
            prefilled = prefill.noised_prefix(request, noise_step)
            cache.store_image_prefixes(self.noised_prefix(number), prefilled.cache, prefilled.next_position)
            image.second_logits_V = prefilled.logits_WV[0]
        return image.second_logits_V

    def find(self, request: Request, waiting: Iterable[Request], *, force: bool) -> int | None:
        """Number for a request's image: where it is already, or one that may be overwritten; None if there is none.

        Args:
            request: the request that is to start.
            waiting: requests whose images should be kept.
            force: overwrite even those, because no caption could start otherwise.
        """
        for number in range(len(self._images)):
            if self._serves(request, number):
                return number
        if None in self._images:
            return self._images.index(None)
        idle = [number for number in range(len(self._images)) if self[number].idle]
        awaited = {id(other.image) for other in waiting if other is not request} if idle else set()
        unused = [number for number in idle if id(self[number].image) not in awaited]
        # The lowest number: a step reads all prefixes up to the highest one in use.
        return min(unused or idle if force else unused, default=None)

    def _serves(self, request: Request, number: int) -> bool:
        """Whether the image of a request is at ``number``, with a free reader."""
        image = self._images[number]
        return image is not None and image.matches(request) and None in image.readers


class TextPrefixes:
    """Prompts without image, which second paths read, by their number in the cache."""

    def __init__(self, count: int) -> None:
        self._prompts: list[ChatPrompt | None] = [None] * count
        self._readers = [0] * count

    def find(self, prompt: ChatPrompt) -> int | None:
        """Number for a prompt: where it is already, or one without readers; None if there is none."""
        if prompt in self._prompts:
            return self._prompts.index(prompt)
        return self._readers.index(0) if 0 in self._readers else None

    def acquire(self, number: int, prompt: ChatPrompt) -> bool:
        """Add a reader of a prompt at ``number``; whether the prompt has to be stored there first."""
        is_new = self._prompts[number] != prompt
        self._prompts[number] = prompt
        self._readers[number] += 1
        return is_new

    def release(self, number: int) -> None:
        """Remove a reader; the prompt stays until it is overwritten."""
        self._readers[number] -= 1


def first_free(slots: Sequence[object | None]) -> int | None:
    """Index of the first None; None if there is none."""
    return next((number for number, content in enumerate(slots) if content is None), None)
