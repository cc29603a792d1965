"""Attention of a decoding step, grouped by path, behind transformers' ``AttentionInterface``.

The model's own forward stays as it is: it computes queries, keys and values of all rows of both paths in one
batch, and hands them to ``attend``, which splits the rows by path and lets each path's cache attend for them.
Without a ``KvCache`` (prefill, training, anybody else) it is transformers' own ``sdpa``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jsfree.errors import ModelError

if TYPE_CHECKING:
    import torch

    from jsfree.decoding.cache import KvCache
    from jsfree.models.loading import Captioner

NAME = "jsfree_paths"


def install(captioner: Captioner) -> None:
    """Let a captioner's language model attend through ``attend``.

    Raises:
        ModelError: it attends to a window only, which the caches do not know.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    if getattr(captioner.model.config.get_text_config(), "sliding_window", None):
        raise ModelError("a captioner with sliding-window attention cannot be decoded", "take one without")
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    captioner.model.model.language_model.set_attn_implementation(NAME)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    paths: KvCache | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls in every layer.

    Args:
        module: the layer's attention.
        query: (rows, heads, tokens, head width); ``key`` and ``value`` have the heads of keys and values.
        key: keys of the tokens fed.
        value: their values.
        attention_mask: transformers' mask; not looked at in a decoding step.
        paths: the caches of a decoding step, in which every row feeds one token.
        options: what transformers' ``sdpa`` takes.
    """
    if paths is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output
    return paths.attend(module.layer_idx, query, key, value, module.scaling), None
