"""Encodes texts with the text tower of a CLIP model, without unnecessary padding where that is exact.

A causal text tower that pools at the end token never looks at what follows it, so padding is cut: the texts of a batch
are encoded at the length of the longest. All others, such as those of SigLIP, look at their padding or pool at their
last position, and are encoded at full length.

Shapes: T texts, L text tokens, D embedding width.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call
from torch.nn import functional as F

from jsfree.gpus import apply_in_halves

if TYPE_CHECKING:
    from jsfree.models.clip import Clip

TEXTS_AT_ONCE = 256


class TextEncoder:
    """Tokenizer and text tower of a CLIP model. Not thread-safe, because tokenizers are not."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._tower = causal_tower(clip.model)
        empty = self._tokens([""])[0]
        self._pad = int(empty[-2])
        self._closing = int(empty[-1]) if empty[-1] != empty[-2] else None
        """The last token of every text, after the padding; None: texts end with padding."""
        cut = self._tokens(["a " * clip.context_length])[0]
        self._padding_is_certain = int(self._before_closing(cut)[-1]) != self._pad
        """A text that ends with padding was not truncated."""

    @property
    def is_causal(self) -> bool:
        """Whether padding is cut."""
        return self._tower is not None

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> tuple[torch.Tensor, int]:
        """Encode texts as unit vectors (T, D), float32 on the CPU, and count their tokens without padding."""
        tokens_TL = self._tokens(texts)
        lengths = self._lengths(tokens_TL)
        order = lengths.argsort(stable=True)
        batches = (order[start : start + TEXTS_AT_ONCE] for start in range(0, len(order), TEXTS_AT_ONCE))
        encoded = [
            apply_in_halves(partial(self._encode_batch, int(lengths[rows].max())), tokens_TL[rows]) for rows in batches
        ]
        return torch.cat(encoded)[order.argsort()], int(lengths.sum())

    def fit(self, texts: list[str]) -> list[bool]:
        """Whether the tokens of each text, including start and end, fit the text context.

        A text fits if a context longer by one token adds padding and nothing else.
        """
        if not texts:
            return []
        tokens_TL = self._tokens(texts)
        fits = (self._before_closing(tokens_TL)[:, -1] == self._pad) & self._padding_is_certain
        uncertain = (~fits).nonzero().flatten().tolist()
        if uncertain:
            longer = self._tokens([texts[row] for row in uncertain], self._clip.context_length + 1)
            expected = F.pad(self._before_closing(tokens_TL[uncertain]), (0, 1), value=self._pad)
            fits[uncertain] = (self._before_closing(longer) == expected).all(-1)
        return [bool(fit) for fit in fits]

    def _lengths(self, tokens_TL: torch.Tensor) -> torch.Tensor:
        """Tokens of each text without padding, (T,)."""
        if self._tower is None:
            return (tokens_TL != self._pad).sum(-1)
        return _pooled_at(self._tower, tokens_TL) + 1

    def _encode_batch(self, longest: int, tokens_TL: torch.Tensor) -> torch.Tensor:
        tokens_TL = tokens_TL.to(self._clip.device)
        if self._tower is None:
            features: torch.Tensor = self._clip.model.encode_text(tokens_TL, normalize=True)
        else:
            features = encode_cut(self._clip.model, tokens_TL[:, :longest])
        return features.float().cpu()

    def _tokens(self, texts: list[str], context_length: int | None = None) -> torch.Tensor:
        tokens_TL: torch.Tensor = self._clip.tokenizer(texts, context_length or self._clip.context_length)
        return tokens_TL

    def _before_closing(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (..., L) without the closing one."""
        return tokens if self._closing is None else tokens[..., :-1]


def causal_tower(model: Any) -> Any:
    """The part of an open_clip model that holds a causal text tower; None if the text tower is another one.

    Only open_clip's own classes are recognised, because the cut depends on how they use mask and positions.
    """
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.transformer import TextTransformer

    if type(model) is CLIP:
        tower, pooled_by = model, model.text_pool_type
    elif type(model) is CustomTextCLIP and type(model.text) is TextTransformer:
        tower, pooled_by = model.text, model.text.pool_type
        if tower.cls_emb is not None or tower.output_tokens:
            return None
    else:
        return None
    return tower if tower.attn_mask is not None and pooled_by in ("argmax", "eos") else None


def encode_cut(model: Any, tokens_TL: torch.Tensor) -> torch.Tensor:
    """Encode texts whose tokens were cut to the longest of them, as unit vectors (T, D).

    Args:
        model: a model for which ``causal_tower`` is not None.
    """
    tower, length = causal_tower(model), tokens_TL.shape[1]
    mask = {"attn_mask": tower.attn_mask[:length, :length]}
    if tower is not model:
        return F.normalize(functional_call(tower, mask, (tokens_TL,), tie_weights=False), dim=-1)
    shorter = mask | {"positional_embedding": model.positional_embedding[:length]}
    output = functional_call(model, shorter, kwargs={"text": tokens_TL}, tie_weights=False)
    features: torch.Tensor = output["text_features"] if isinstance(output, dict) else output[1]
    return features


def _pooled_at(tower: Any, tokens_TL: torch.Tensor) -> torch.Tensor:
    """Position at which each text is pooled, (T,), as in open_clip's ``text_global_pool``."""
    is_clip = hasattr(tower, "text_pool_type")
    pooled_by, end = (tower.text_pool_type, tower.text_eos_id) if is_clip else (tower.pool_type, tower.eos_id)
    positions_T: torch.Tensor = ((tokens_TL == end).int() if pooled_by == "eos" else tokens_TL).argmax(-1)
    return positions_T
