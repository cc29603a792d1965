"""Attention of a decoding step, plugged in through transformers' ``AttentionInterface``.

The model's own forward stays unmodified: it computes queries, keys and values of the rows of both paths in one batch
and calls ``attend``, which passes them to the ``KvCache``. Without a cache (prefill, training) ``attend`` is
transformers' ``sdpa``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from jsfree.decoding.cache import KvCache
    from jsfree.models.loading import Captioner

NAME = "jsfree_paths"


def install(captioner: Captioner) -> None:
    """Set a captioner's language model to attend through ``attend``.

    A language model whose layers have a sliding window is decoded as if it had none, which is exact as long as prefix
    and caption fit into the window (``DualPathEngine.submit``).
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    captioner.language_model.set_attn_implementation(NAME)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    kv_cache: KvCache | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls in every layer.

    Args:
        module: the layer's attention module.
        query: (rows, query heads, tokens, head width).
        key: (rows, heads of keys and values, tokens, head width).
        value: as ``key``.
        attention_mask: transformers' mask; ignored in a decoding step.
        kv_cache: the cache of a decoding step, in which every row feeds one token.
        options: further arguments of transformers' ``sdpa``.
    """
    if kv_cache is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output
    return kv_cache.attend(module.layer_idx, query, key, value, module.scaling), None
