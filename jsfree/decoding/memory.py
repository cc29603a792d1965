"""Memory for keys and values: bytes a token, and bytes available."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from jsfree.models.loading import Captioner

GIB = 1024**3
GPU_SHARE, CPU_SHARE = 0.9, 0.5
"""Share of the free memory that keys and values may take."""


@dataclass(frozen=True)
class KvSize:
    """Size of keys and values."""

    token_bytes: int
    """Bytes of a token, all layers."""
    group: int
    """Query heads that share a head of keys and values."""

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype) -> KvSize:
        """The size for a language model, from its configuration."""
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * width
        return cls(int(numbers * dtype.itemsize), config.num_attention_heads // config.num_key_value_heads)


def kv_size(captioner: Captioner) -> KvSize:
    """Size of a captioner's keys and values."""
    return KvSize.of(captioner.model.config.get_text_config(), captioner.model.dtype)


def kv_budget(captioner: Captioner, kv_cache_gib: float | None, held: int = 0) -> int:
    """Bytes for keys and values now: the configured size, or a share of the free memory.

    Args:
        captioner: the model, whose devices are measured.
        kv_cache_gib: the configured size, or None.
        held: bytes of keys and values in use that would be freed first.
    """
    if kv_cache_gib is not None:
        return int(kv_cache_gib * GIB)
    devices = _gpus(captioner)
    if devices:
        torch.cuda.empty_cache()
        # Keys and values are on the devices of their layers, about as many on each.
        free = len(devices) * min(torch.cuda.mem_get_info(device)[0] for device in devices)
        return int(GPU_SHARE * (free + held))
    return int(CPU_SHARE * (psutil.virtual_memory().available + held))


def kv_limit(captioner: Captioner, kv_cache_gib: float | None) -> int:
    """Most bytes for keys and values: the configured size, or the budget if nothing else used the device."""
    if kv_cache_gib is not None:
        return int(kv_cache_gib * GIB)
    devices = _gpus(captioner)
    if devices:
        rest = (torch.cuda.mem_get_info(device)[1] - torch.cuda.memory_allocated(device) for device in devices)
        return int(GPU_SHARE * len(devices) * min(rest))
    return int(CPU_SHARE * psutil.virtual_memory().total)


def _gpus(captioner: Captioner) -> set[torch.device]:
    """The GPUs that hold the model; empty if a part of it is elsewhere."""
    placed = getattr(captioner.model, "hf_device_map", {}).values()
    devices = {torch.device(device) for device in placed} or {captioner.device}
    return devices if all(device.type == "cuda" for device in devices) else set()
