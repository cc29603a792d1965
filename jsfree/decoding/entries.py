"""Captions in their slots, which images and prompts are prefilled for them, and who reads which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import NoiseStream

if TYPE_CHECKING:
    from jsfree.decoding.cache import KvCache
    from jsfree.decoding.prefill import Prefill


@dataclass
class Live:
    """A caption in its slot."""

    request: Request
    noise: NoiseStream
    entry: int | None = None
    seat: int = 0
    second_row: int | None = None
    lead: int | None = None
    """The prompt without image that its second row follows."""
    tokens: list[int] = field(default_factory=list)


@dataclass
class Entry:
    """An image with its prompt, prefilled; which slots read it, and the logits of its captions' first token."""

    pixels: torch.Tensor
    prompt: str
    readers: list[int | None]
    first_V: torch.Tensor
    second_V: torch.Tensor | None = None

    def is_of(self, request: Request) -> bool:
        """Whether it is what a request reads."""
        return self.pixels is request.pixels and self.prompt == request.prompt

    @property
    def idle(self) -> bool:
        """Whether nobody reads it."""
        return all(reader is None for reader in self.readers)


class Entries:
    """The places for prefilled images."""

    def __init__(self, count: int, seats: int) -> None:
        self._places: list[Entry | None] = [None] * count
        self._seats = seats

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Entry:
        entry = self._places[number]
        assert entry is not None
        return entry

    def read_by(self, request: Request, number: int) -> bool:
        """Whether a request finds its image, prefilled and with a free seat, at a place."""
        entry = self._places[number]
        return entry is not None and entry.is_of(request) and None in entry.readers

    def prefilled(self, request: Request, number: int, prefill: Prefill, cache: KvCache) -> Entry:
        """The entry of a request's image at a place; prefilled and stored there if it is not there yet."""
        if not self.read_by(request, number):
            prefilled = prefill.image(request.pixels, request.prompt)
            cache.store_entry(number, prefilled.cache)
            self._places[number] = Entry(request.pixels, request.prompt, [None] * self._seats, prefilled.logits_V)
        return self[number]

    def second(self, number: int, noise_step: int | None, prefill: Prefill, cache: KvCache) -> torch.Tensor:
        """The first logits of a second path that sees an entry's image noised, prefilled once for each image."""
        entry = self[number]
        if entry.second_V is None:
            prefilled = prefill.image(entry.pixels, entry.prompt, noise_step)
            cache.store_entry(len(self) + number, prefilled.cache)
            entry.second_V = prefilled.logits_V
        return entry.second_V

    def place_for(self, request: Request, waiting: Iterable[Request], *, must: bool) -> int | None:
        """The place that a request can use: its image's with a free seat, or one that nobody reads; None if none.

        Args:
            request: the one that is to begin.
            waiting: requests whose images had better stay.
            must: whether such an image may be given up, since nothing would go on otherwise.
        """
        for number in range(len(self._places)):
            if self.read_by(request, number):
                return number
        if None in self._places:
            return self._places.index(None)
        idle = [number for number in range(len(self._places)) if self[number].idle]
        awaited = {id(each.pixels) for each in waiting if each is not request} if idle else set()
        forgettable = [number for number in idle if id(self[number].pixels) not in awaited]
        # Low numbers first: a step reads up to the highest one.
        return min(forgettable or idle if must else forgettable, default=None)


class Leads:
    """The places for prompts without image, which second paths follow."""

    def __init__(self, count: int) -> None:
        self._prompts: list[str | None] = [None] * count
        self._followers = [0] * count

    def place_for(self, prompt: str) -> int | None:
        """The place of a prompt, or one that nobody follows; None if there is none."""
        if prompt in self._prompts:
            return self._prompts.index(prompt)
        return self._followers.index(0) if 0 in self._followers else None

    def follow(self, place: int, prompt: str) -> bool:
        """Follow a prompt at a place; whether it has to be stored there first."""
        fresh = self._prompts[place] != prompt
        self._prompts[place] = prompt
        self._followers[place] += 1
        return fresh

    def leave(self, place: int) -> None:
        """No longer follow it; the prompt stays until its place is wanted."""
        self._followers[place] -= 1


def first_free(places: Sequence[object | None]) -> int | None:
    """The first place that is free; None if none is."""
    return next((number for number, each in enumerate(places) if each is None), None)
