"""How many captions fit into the memory for keys and values, told before anything is laid out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from jsfree.decoding.cache import CacheLayout, rounded
from jsfree.errors import DeviceError
from jsfree.models.loading import Captioner

GIB = 1024**3
OF_GPU, OF_CPU = 0.9, 0.5


@dataclass(frozen=True)
class Need:
    """What captions ask for at most, in tokens."""

    prefix: int
    """Image and prompt."""
    lead: int
    """The prompt without the image."""
    own: int
    """The caption."""

    def holds(self, other: Need) -> bool:
        """Whether what is laid out for this is enough for another."""
        return self.prefix >= other.prefix and self.lead >= other.lead and self.own >= other.own

    def joined(self, other: Need) -> Need:
        """Enough for both."""
        return Need(max(self.prefix, other.prefix), max(self.lead, other.lead), max(self.own, other.own))


@dataclass(frozen=True)
class Keys:
    """What a token's keys and values take."""

    token_bytes: int
    """Of all layers."""
    group: int
    """Heads of queries that share a head of keys."""

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype) -> Keys:
        """Those of a language model, by its configuration."""
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * width
        return cls(int(numbers * dtype.itemsize), config.num_attention_heads // config.num_key_value_heads)


@dataclass(frozen=True)
class Layout:
    """Memory for a number of captions."""

    slots: int
    mixed: int
    """Rows of the second path."""
    images: int
    """Images whose prefill is held; each takes two entries where the second path sees it too, noised."""
    need: Need
    cache: CacheLayout
    bytes: int
    """Keys and values, all layers."""


@dataclass(frozen=True)
class Shape:
    """What an engine is for."""

    slots: int
    """Most captions decoded together."""
    mixed: float
    """Share of them that evaluates the second path."""
    seats: int
    """Captions of an image that may share its prefill."""
    images: float
    """Images whose prefill is held, as a share of the slots."""
    prompts: int | None
    """Prompts without image that second paths follow at a time; one for each of them when None."""
    second_image: bool
    """Whether the second path sees a (noised) image."""

    def layout(self, keys: Keys, need: Need, budget: float) -> Layout:
        """The largest layout of at most ``slots`` captions within ``budget`` bytes.

        Raises:
            DeviceError: not even one caption fits.
        """
        for slots in range(self.slots, 0, -1):
            layout = self._of(slots, need, keys)
            if layout.bytes <= budget:
                return layout
        raise DeviceError(
            f"the keys and values of one caption take {layout.bytes / GIB:.3g} GiB ({need.prefix} tokens of image and"
            f" prompt, up to {need.own} of the caption), but there are {budget / GIB:.3g} GiB for them",
            "set 'kv_cache_gib' higher, 'max_new_tokens' lower, or take a GPU with more memory",
        )

    def _of(self, slots: int, need: Need, keys: Keys) -> Layout:
        images = min(slots, int(slots * self.images) + 1)
        mixed = math.ceil(slots * self.mixed)
        leads = 0 if self.second_image else mixed if self.prompts is None else min(mixed, self.prompts)
        cache = CacheLayout(
            rows=slots + mixed,
            readers=slots + mixed if self.second_image else slots,
            own=rounded(need.own),
            entries=images * (2 if self.second_image else 1),
            seats=self.seats,
            prefix=need.prefix,
            leads=leads,
            lead=need.lead,
            group=keys.group,
        )
        return Layout(slots, mixed, images, need, cache, cache.tokens * keys.token_bytes)


def keys_of(captioner: Captioner) -> Keys:
    """What a token's keys and values take in a captioner."""
    return Keys.of(captioner.model.config.get_text_config(), captioner.model.dtype)


def budget_of(captioner: Captioner, kv_cache_gib: float | None, held: int = 0) -> int:
    """Bytes for keys and values now: as configured, or a share of the memory that is free.

    Args:
        captioner: the model; its devices are looked at.
        kv_cache_gib: the configured size, or None.
        held: bytes of keys and values that are laid out and would be freed first.
    """
    if kv_cache_gib is not None:
        return int(kv_cache_gib * GIB)
    devices = _gpus(captioner)
    if devices:
        torch.cuda.empty_cache()
        # Keys and values are on the devices of their layers, about as many on each.
        free = len(devices) * min(torch.cuda.mem_get_info(device)[0] for device in devices)
        return int(OF_GPU * (free + held))
    return int(OF_CPU * (psutil.virtual_memory().available + held))


def limit_of(captioner: Captioner, kv_cache_gib: float | None) -> int:
    """Bytes that keys and values could take at best: as configured, or if nothing else used the device's memory."""
    if kv_cache_gib is not None:
        return int(kv_cache_gib * GIB)
    devices = _gpus(captioner)
    if devices:
        rest = (torch.cuda.mem_get_info(device)[1] - torch.cuda.memory_allocated(device) for device in devices)
        return int(OF_GPU * len(devices) * min(rest))
    return int(OF_CPU * psutil.virtual_memory().total)


def _gpus(captioner: Captioner) -> set[torch.device]:
    """The GPUs that the model is on; none where a part of it is elsewhere."""
    devices = {torch.device(each) for each in getattr(captioner.model, "hf_device_map", {}).values()}
    devices = devices or {captioner.device}
    return devices if all(device.type == "cuda" for device in devices) else set()
