"""Keys and values of captions in flight, in memory that is allocated once.

*Image prefixes* (an image with its prompt) are stored once for several captions, their *readers*. *Text prefixes* (a
prompt without image) are stored once for all second paths that read them. *Rows* hold the own tokens of one path of a
caption; the first rows read an image prefix, the others a text prefix. In a step the queries of all readers of a
prefix meet its keys in one matrix product, and no row is padded to the length of another.

The memory must hold finite numbers only: masked values are multiplied by zero, and zero times NaN is NaN. A caption
whose values are NaN fails, and its rows are cleared for the next one.

Shape suffixes: R rows, Q rows that read an image prefix, M rows that read a text prefix, H heads of keys and values,
G query heads that share one of them, T own tokens of a row, P tokens of an image prefix, N tokens of all text
prefixes, L = P + T or N + T, I image prefixes, S readers of an image prefix, X = S G, K text prefixes, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import DynamicCache

ROUNDING = 16
"""Tokens by which the attended length grows at a time."""


def round_up(length: int) -> int:
    """Round a length in tokens up to a multiple of ``ROUNDING``."""
    return -(-length // ROUNDING) * ROUNDING


@dataclass(frozen=True)
class CacheLayout:
    """Sizes of the memory."""

    rows: int
    image_rows: int
    """The first rows, which read an image prefix; the others read a text prefix."""
    own_tokens: int
    """Own tokens of a row."""
    image_prefixes: int
    readers: int
    """Captions that may read an image prefix at a time."""
    image_tokens: int
    """Tokens of an image prefix."""
    text_prefixes: int
    text_tokens: int
    """Tokens of a text prefix."""
    group: int
    """Query heads that share a head of keys and values."""

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values fit."""
        return (
            self.rows * self.own_tokens
            + self.image_prefixes * self.image_tokens
            + self.text_prefixes * self.text_tokens
        )


@dataclass(frozen=True)
class StepRows:
    """State of the rows in a step, (R,) int64 each."""

    own_length_R: torch.Tensor
    """Own tokens that a row holds already; the new token is stored after them."""
    prefix_R: torch.Tensor
    """Image or text prefix that a row reads; their total number for a row that reads none."""
    reader_R: torch.Tensor
    """Number of a row among the readers of its image prefix."""


@dataclass(frozen=True)
class Extent:
    """The part of the memory that a step reads; no row attends to anything beyond."""

    own_tokens: int
    image_prefixes: int
    image_tokens: int
    text_prefixes: int


class KvCache:
    """Keys and values of all layers, with the interface that the model's forward expects of a transformers cache."""

    def __init__(self, layout: CacheLayout, device: torch.device) -> None:
        self.layout = layout
        self._layers: list[_Layer] = []
        # One length more, which is 0, for rows that read no prefix.
        self._image_lengths_I = torch.zeros(layout.image_prefixes + 1, dtype=torch.int64, device=device)
        self._text_lengths_K = torch.zeros(layout.text_prefixes + 1, dtype=torch.int64, device=device)
        # Positions of the first own tokens, which differ from the lengths in models with M-RoPE.
        self._image_positions_I = torch.zeros_like(self._image_lengths_I)
        self._text_positions_K = torch.zeros_like(self._text_lengths_K)
        self._own_T = torch.arange(layout.own_tokens, device=device)
        self._image_P = torch.arange(layout.image_tokens, device=device)
        self._text_N = torch.arange(layout.text_prefixes * layout.text_tokens, device=device)
        self._steps: dict[torch.device, _Step] = {}
        self.image_lengths = [0] * layout.image_prefixes
        """Tokens that each image prefix holds."""

    def store_image_prefixes(self, first: int, prefilled: DynamicCache, next_position: int) -> None:
        """Store the prefill of images and their prompts, of one length, from the prefix ``first`` on.

        Args:
            next_position: position of the token after each of them.
        """
        length = prefilled.get_seq_length()
        for layer, keys_IHLD, values_IHLD in self._pair_layers(prefilled):
            end = first + len(keys_IHLD)
            layer.image_keys[first:end, :, :length] = keys_IHLD.nan_to_num()
            layer.image_values[first:end, :, :length] = values_IHLD.nan_to_num()
        self._image_lengths_I[first:end] = length
        self._image_positions_I[first:end] = next_position
        self.image_lengths[first:end] = [length] * (end - first)

    def store_text_prefix(self, number: int, prefilled: DynamicCache) -> None:
        """Store the prefill of a prompt without image."""
        length = prefilled.get_seq_length()
        start = number * self.layout.text_tokens
        for layer, keys_1HLD, values_1HLD in self._pair_layers(prefilled):
            layer.text_keys[:, start : start + length] = keys_1HLD[0].nan_to_num()
            layer.text_values[:, start : start + length] = values_1HLD[0].nan_to_num()
        self._text_lengths_K[number] = self._text_positions_K[number] = length

    def clear_rows(self, rows: Sequence[int]) -> None:
        """Set the rows' own keys and values to zero, so that NaN does not reach the next captions."""
        for layer in self._layers:
            layer.keys[rows] = 0.0
            layer.values[rows] = 0.0

    def begin_step(self, step_rows: StepRows, extent: Extent) -> torch.Tensor:
        """Prepare the masks of a step; the position of every row's new token, (R,).

        Rows attend to ``extent.own_tokens`` own tokens, of which those they do not hold are masked. An idle row (no
        own tokens, no prefix) attends to its new token only.
        """
        image_rows, text_tokens = self.layout.image_rows, self.layout.text_tokens
        image_Q, text_M = step_rows.prefix_R[:image_rows], step_rows.prefix_R[image_rows:]
        lengths_Q1, lengths_M1 = self._image_lengths_I[image_Q][:, None], self._text_lengths_K[text_M][:, None]
        own_RT = _additive_mask(self._own_T[: extent.own_tokens] <= step_rows.own_length_R[:, None])
        offset_MN = self._text_N[: extent.text_prefixes * text_tokens] - text_M[:, None] * text_tokens
        image_QP = _additive_mask(self._image_P[: extent.image_tokens] < lengths_Q1)
        text_MN = _additive_mask((offset_MN >= 0) & (offset_MN < lengths_M1))
        readers = slice(None), step_rows.reader_R[:image_rows]
        step = _Step(
            extent,
            step_rows.own_length_R,
            write=(image_Q, *readers),
            read=(image_Q.clamp(max=max(extent.image_prefixes - 1, 0)), *readers),
            image_mask_Q11L=torch.cat((image_QP, own_RT[:image_rows]), dim=-1)[:, None, None],
            text_mask_M11L=torch.cat((text_MN, own_RT[image_rows:]), dim=-1)[:, None, None],
        )
        self._steps = {step_rows.own_length_R.device: step}
        first_R = torch.cat((self._image_positions_I[image_Q], self._text_positions_K[text_M]))
        return first_R + step_rows.own_length_R

    def update(
        self, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values unchanged: transformers calls this to store them, but ``attend`` does that."""
        return key, value

    def attend(
        self, layer_index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store the new token of every row and compute its attention.

        Args:
            layer_index: the layer.
            query: (R, H G, 1, D).
            key: (R, H, 1, D).
            value: (R, H, 1, D).
            scale: factor of the queries.

        Returns:
            (R, 1, H G, D).
        """
        layer, step = self._layers[layer_index], self._step_on(query.device)
        rows, heads = key.shape[:2]
        own, image_rows, image = step.extent.own_tokens, self.layout.image_rows, step.extent.image_tokens
        text = step.extent.text_prefixes * self.layout.text_tokens
        layer.keys[layer.rows_R, :, step.own_length_R] = key[:, :, 0]
        layer.values[layer.rows_R, :, step.own_length_R] = value[:, :, 0]
        query_RHGD = query.view(rows, heads, -1, query.shape[-1]) * scale
        scores_RHGT = query_RHGD @ layer.keys[:, :, :own].transpose(-1, -2)
        weights: list[torch.Tensor] = []
        if image_rows:
            scores_QHGP = layer.image_scores(query_RHGD[:image_rows], step)
            weights_QHGL = _softmax(scores_QHGP, scores_RHGT[:image_rows], step.image_mask_Q11L)
            weights.append(weights_QHGL[..., image:])
        if image_rows < rows:
            scores_MHGN = _matmul_shared(query_RHGD[image_rows:], layer.text_keys[:, :text].transpose(-1, -2))
            weights_MHGL = _softmax(scores_MHGN, scores_RHGT[image_rows:], step.text_mask_M11L)
            weights.append(weights_MHGL[..., text:])
        weights_RHGT = weights[0] if len(weights) == 1 else torch.cat(weights)
        output_RHGD = weights_RHGT @ layer.values[:, :, :own]
        if image_rows:
            output_RHGD[:image_rows] += layer.image_output(weights_QHGL[..., :image], step)
        if image_rows < rows:
            output_RHGD[image_rows:] += _matmul_shared(weights_MHGL[..., :text], layer.text_values[:, :text])
        return output_RHGD.flatten(1, 2).unsqueeze(1)

    def _step_on(self, device: torch.device) -> _Step:
        """The step's tensors on the device of a layer, which may differ from that of the first."""
        if device not in self._steps:
            self._steps[device] = next(iter(self._steps.values())).to(device)
        return self._steps[device]

    def _pair_layers(self, prefilled: DynamicCache) -> Iterator[tuple[_Layer, torch.Tensor, torch.Tensor]]:
        """Each layer's memory with the keys and values (prompts, H, length, D) that were prefilled for it.

        The first prefill determines shape, dtype and device of the memory.
        """
        if not self._layers:
            self._layers = [_Layer(self.layout, source.keys) for source in prefilled.layers]
        for layer, source in zip(self._layers, prefilled.layers, strict=True):
            yield layer, source.keys, source.values


ReaderIndex = tuple[torch.Tensor, slice, torch.Tensor]
"""Index of image rows into (image prefixes, heads, readers)."""


@dataclass(frozen=True)
class _Step:
    """Tensors that all layers of a step share."""

    extent: Extent
    own_length_R: torch.Tensor
    write: ReaderIndex
    """Where rows write their queries; rows without an image prefix write after the last one."""
    read: ReaderIndex
    """Where rows read their results; rows without an image prefix read from an arbitrary place."""
    image_mask_Q11L: torch.Tensor
    """Additive mask of rows that read an image prefix."""
    text_mask_M11L: torch.Tensor
    """Additive mask of rows that read a text prefix."""

    def to(self, device: torch.device) -> _Step:
        """Copy to another device."""
        (write, heads, writer), (read, _, reader) = self.write, self.read
        return _Step(
            self.extent,
            self.own_length_R.to(device),
            write=(write.to(device), heads, writer.to(device)),
            read=(read.to(device), heads, reader.to(device)),
            image_mask_Q11L=self.image_mask_Q11L.to(device),
            text_mask_M11L=self.text_mask_M11L.to(device),
        )


class _Layer:
    """The memory of one layer, on the device and in the dtype of the layer's own keys."""

    def __init__(self, layout: CacheLayout, like_IHLD: torch.Tensor) -> None:
        _, heads, _, width = like_IHLD.shape
        self.keys = like_IHLD.new_zeros(layout.rows, heads, layout.own_tokens, width)
        self.values = torch.zeros_like(self.keys)
        self.rows_R = torch.arange(layout.rows, device=like_IHLD.device)
        self.image_keys = like_IHLD.new_zeros(layout.image_prefixes, heads, layout.image_tokens, width)
        self.image_values = torch.zeros_like(self.image_keys)
        self.text_keys = like_IHLD.new_zeros(heads, layout.text_prefixes * layout.text_tokens, width)
        self.text_values = torch.zeros_like(self.text_keys)
        # One prefix more, for rows that read none.
        grid = layout.image_prefixes + 1, heads, layout.readers, layout.group
        self._queries = like_IHLD.new_zeros(*grid, width)
        self._weights = like_IHLD.new_zeros(*grid, layout.image_tokens)

    def image_scores(self, query_QHGD: torch.Tensor, step: _Step) -> torch.Tensor:
        """Scores of rows against their image prefixes, (Q, H, G, P); one matrix product for all readers."""
        prefixes, tokens = step.extent.image_prefixes, step.extent.image_tokens
        self._queries[step.write] = query_QHGD
        keys_IHPD = self.image_keys[:prefixes, :, :tokens]
        scores_IHXP = self._queries[:prefixes].flatten(2, 3) @ keys_IHPD.transpose(-1, -2)
        return self._gather_rows(scores_IHXP, step)

    def image_output(self, weights_QHGP: torch.Tensor, step: _Step) -> torch.Tensor:
        """Weighted sums of the image prefixes' values, (Q, H, G, D)."""
        prefixes, tokens = step.extent.image_prefixes, step.extent.image_tokens
        weights_IHSGP = self._weights[..., :tokens]
        weights_IHSGP[step.write] = weights_QHGP
        output_IHXD = weights_IHSGP[:prefixes].flatten(2, 3) @ self.image_values[:prefixes, :, :tokens]
        return self._gather_rows(output_IHXD, step)

    def _gather_rows(self, results_IHXA: torch.Tensor, step: _Step) -> torch.Tensor:
        """The result of each row, (Q, H, G, A); some finite number for rows without an image prefix."""
        prefixes, heads, _, width = results_IHXA.shape
        gathered: torch.Tensor = results_IHXA.view(prefixes, heads, *self._queries.shape[2:4], width)[step.read]
        return gathered


def _additive_mask(visible: torch.Tensor) -> torch.Tensor:
    """0 where a token is visible, else minus infinity."""
    return torch.where(visible, 0.0, -torch.inf)


def _softmax(shared_RHGP: torch.Tensor, own_RHGT: torch.Tensor, mask_R11L: torch.Tensor) -> torch.Tensor:
    """Softmax over shared and own tokens together, in float32 as in transformers' attention, (R, H, G, L)."""
    scores_RHGL = torch.cat((shared_RHGP, own_RHGT), dim=-1).add_(mask_R11L)
    return F.softmax(scores_RHGL, dim=-1, dtype=torch.float32).to(own_RHGT.dtype)


def _matmul_shared(rows_MHGA: torch.Tensor, shared_HAB: torch.Tensor) -> torch.Tensor:
    """Products of every row with a matrix that all rows share, (M, H, G, B): one matrix product a head."""
    rows, heads, group, _ = rows_MHGA.shape
    product_HXB = rows_MHGA.transpose(0, 1).flatten(1, 2) @ shared_HAB
    return product_HXB.view(heads, rows, group, -1).transpose(0, 1)
