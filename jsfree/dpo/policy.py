"""The policy: maps a batch of pairs to the log-probabilities of their captions.

Shape suffixes: B pairs (rows), L positions of a row, T completion tokens, V vocabulary, D width, N visual tokens of all
images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jsfree.dpo.batching import PairBatch, attention_mask, flex_mask
from jsfree.errors import ModelError
from jsfree.models.families.base import FEATURES, Tensors
from jsfree.models.families.registry import family_of
from jsfree.schemas import Role

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLEX = "flex_attention"
HEAD_CHUNK = 1024
"""Completion tokens whose logits are in memory at a time, in each forward and backward pass."""


class CompletionHead(torch.nn.Linear):
    """An LM head that can also return log-probabilities of given tokens, without keeping the logits of all of them.

    It is called once a forward pass, however many tokens there are: under ZeRO-3 every call gathers its weight from
    all workers.
    """

    @classmethod
    def of(cls, head: torch.nn.Linear) -> CompletionHead:
        """A head that shares the parameters of ``head``."""
        own = cls(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        own.weight, own.bias = head.weight, head.bias
        return own

    def forward(self, hidden_TD: torch.Tensor, targets_T: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (T, V), or log-probabilities of ``targets_T``, (T,) float32."""
        if targets_T is None:
            return super().forward(hidden_TD)
        if len(targets_T) <= HEAD_CHUNK:
            return self._logps(hidden_TD, targets_T)
        chunks = zip(torch.split(hidden_TD, HEAD_CHUNK), torch.split(targets_T, HEAD_CHUNK), strict=True)
        # Checkpointed: the backward pass recomputes the logits of one chunk at a time.
        return torch.cat([checkpoint(self._logps, *chunk, use_reentrant=False) for chunk in chunks])

    def _logps(self, hidden_TD: torch.Tensor, targets_T: torch.Tensor) -> torch.Tensor:
        logits_TV = F.linear(hidden_TD, self.weight, self.bias)
        return -F.cross_entropy(logits_TV.float(), targets_T, reduction="none")


class PairModel(torch.nn.Module):
    """The module that is trained: a captioner's model with a ``CompletionHead`` in place of its LM head."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.family = family_of(model.config)
        self.llava: Any = model  # of any family; the name is part of the checkpoints of training
        self.llava.lm_head = CompletionHead.of(self.llava.lm_head)

    def forward(self, batch: PairBatch) -> dict[Role, torch.Tensor]:
        """Summed log-probabilities of the captions of each row (Eq. 1-2) by role, float32.

        Raises:
            ModelError: as ``token_logps``.
        """
        captions = torch.split(self.token_logps(batch), [length for each in batch.lengths.values() for length in each])
        sums = torch.stack([caption_T.sum() for caption_T in captions])
        return dict(zip(batch.lengths, torch.split(sums, list(map(len, batch.lengths.values()))), strict=True))

    def token_logps(self, batch: PairBatch) -> torch.Tensor:
        """Log-probability of each completion token, (T,) float32.

        Raises:
            ModelError: the prompts' image tokens do not match the images' visual tokens in number.
        """
        visual = self.family.project(self.llava, {**batch.images, **self.vision_features(batch.images)})
        embedded_BLD = self.llava.get_input_embeddings()(batch.ids_BL)
        is_image_BL = batch.ids_BL == self.llava.config.image_token_id
        if int(is_image_BL.sum()) != len(visual.embeddings):
            raise ModelError(
                f"{int(is_image_BL.sum())} image tokens in the prompts of {len(batch.ids_BL)} rows, but"
                f" {len(visual.embeddings)} visual tokens of their images",
                "use processor and model of one checkpoint",
            )
        embedded_BLD = embedded_BLD.masked_scatter(is_image_BL[..., None], visual.embeddings.to(embedded_BLD.dtype))
        hidden_BLD = self.family.language_model(self.llava)(
            inputs_embeds=embedded_BLD,
            attention_mask=self._mask(batch.segments_BL, is_image_BL, embedded_BLD.dtype),
            position_ids=batch.positions,
            use_cache=False,
            **self.family.language_arguments(visual, is_image_BL),
        ).last_hidden_state
        logps_T: torch.Tensor = self.llava.lm_head(hidden_BLD[batch.rows_T, batch.columns_T], batch.targets_T)
        return logps_T

    def _mask(self, segments_BL: torch.Tensor, is_image_BL: torch.Tensor, dtype: torch.dtype) -> Any:
        """The pairs' attention mask in the form that the language model's attention kernel takes."""
        blocks_BL = is_image_BL if self.family.has_image_blocks else None
        if self.llava.config.get_text_config()._attn_implementation != FLEX:
            return attention_mask(segments_BL, dtype, blocks_BL)
        from torch.nn.attention.flex_attention import create_block_mask

        rows, length = segments_BL.shape
        return create_block_mask(
            flex_mask(segments_BL, blocks_BL), rows, None, length, length, device=segments_BL.device
        )

    def vision_features(self, images: Tensors) -> Tensors:
        """Features of images from the frozen vision tower, before the projector; empty if ``images`` has them."""
        if FEATURES in images:
            return {}
        with torch.no_grad():
            return self.family.features(self.llava, images)
