"""The policy: maps a batch of pairs to the log-probabilities of their captions.

Shape suffixes: B pairs (rows), L positions of a row, T completion tokens, V vocabulary, D width, N visual tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jsfree.dpo.batching import PairBatch, attention_mask, flex_mask
from jsfree.errors import ModelError
from jsfree.schemas import Role

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

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
    """The module that is trained: ``llava`` with a ``CompletionHead`` in place of its LM head."""

    def __init__(self, llava: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.llava = llava
        llava.lm_head = CompletionHead.of(llava.lm_head)

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
        model: Any = self.llava.model
        features_BND = batch.features if batch.features is not None else self.vision_features(batch.pixels)
        visual_BND = model.multi_modal_projector(features_BND)
        embedded_BLD = model.get_input_embeddings()(batch.ids_BL)
        is_image_BL = batch.ids_BL == self.llava.config.image_token_index
        if int(is_image_BL.sum()) != visual_BND.shape[0] * visual_BND.shape[1]:
            raise ModelError(
                f"{int(is_image_BL.sum())} image tokens in the prompts, but {visual_BND.shape[0]} images of"
                f" {visual_BND.shape[1]} visual tokens",
                "give the processor the patch size of the vision tower",
            )
        embedded_BLD = embedded_BLD.masked_scatter(is_image_BL[..., None], visual_BND.to(embedded_BLD.dtype))
        hidden_BLD = model.language_model(
            inputs_embeds=embedded_BLD,
            attention_mask=self._mask(batch.segments_BL, embedded_BLD.dtype),
            position_ids=batch.positions_BL,
            use_cache=False,
        ).last_hidden_state
        logps_T: torch.Tensor = self.llava.lm_head(hidden_BLD[batch.rows_T, batch.columns_T], batch.targets_T)
        return logps_T

    def _mask(self, segments_BL: torch.Tensor, dtype: torch.dtype) -> Any:
        """The pairs' attention mask in the form that the language model's attention kernel takes."""
        if self.llava.config.text_config._attn_implementation != FLEX:
            return attention_mask(segments_BL, dtype)
        from torch.nn.attention.flex_attention import create_block_mask

        rows, length = segments_BL.shape
        return create_block_mask(flex_mask(segments_BL), rows, None, length, length, device=segments_BL.device)

    def vision_features(self, pixels: torch.Tensor | None) -> torch.Tensor:
        """Features of images from the frozen vision tower, before the projector, (B, N, D)."""
        assert pixels is not None
        config = self.llava.config
        layers = config.vision_feature_layer
        with torch.no_grad():
            states = self.llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        selected = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        if config.vision_feature_select_strategy == "default":
            selected = [state[:, 1:] for state in selected]  # without the class token
        return torch.cat(selected, dim=-1)
