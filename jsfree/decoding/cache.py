"""Keys and values of captions in flight, in memory that is laid out once.

The memory holds numbers only. What is masked is multiplied by zero, which NaN outlives: a caption that meets NaN fails,
and must leave none for the next.

*Entries* are what several captions share: an image with its prompt, stored once, with *seats* for the captions that
read it. *Leads* are what second paths share: a prompt without image, stored once for all of them. *Rows* are what a
path of a caption has of its own; the first of them read an entry beside it, the others a lead. A step's queries meet
each entry once, those of all its seats together, and no row is padded for another's sake.

Shape suffixes: R rows, Q rows that read an entry, M the other rows, H heads of keys and values, G query heads that
share one of them, T tokens of a row's own, P tokens of an entry, N tokens of all leads, L = P + T or N + T, E entries,
S seats of an entry, X = S G, D head width.
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
"""What rows attend to grows by this many tokens at a time."""


def rounded(length: int) -> int:
    """A length in tokens as rows are laid out."""
    return -(-length // ROUNDING) * ROUNDING


@dataclass(frozen=True)
class CacheLayout:
    """How much there is of everything."""

    rows: int
    readers: int
    """Rows, the first ones, that read an entry; the others read a lead."""
    own: int
    """Tokens of a row's own."""
    entries: int
    seats: int
    prefix: int
    """Tokens of an entry."""
    leads: int
    lead: int
    """Tokens of a lead."""
    group: int
    """Query heads that share a head of keys and values."""

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values are held."""
        return self.rows * self.own + self.entries * self.prefix + self.leads * self.lead


@dataclass(frozen=True)
class Fed:
    """Where the rows stand in a step, one number a row, int64."""

    fill_R: torch.Tensor
    """Tokens of its own that a row holds already; the token fed is stored behind them."""
    source_R: torch.Tensor
    """The entry or lead that a row reads; the number of entries, or of leads, for one that reads none."""
    seat_R: torch.Tensor


@dataclass(frozen=True)
class Extent:
    """How much a step reads; what is behind holds nothing that any row attends to."""

    own: int
    """Tokens of a row's own."""
    entries: int
    prefix: int
    """Tokens of an entry."""
    leads: int


class KvCache:
    """Keys and values of all layers; the model's forward takes it for a cache of transformers."""

    def __init__(self, layout: CacheLayout, device: torch.device) -> None:
        self.layout = layout
        self._layers: list[_Layer] = []
        self._lengths_E = torch.zeros(layout.entries + 1, dtype=torch.int64, device=device)
        self._lengths_K = torch.zeros(layout.leads + 1, dtype=torch.int64, device=device)  # K leads, and none
        self._own_T = torch.arange(layout.own, device=device)
        self._prefix_P = torch.arange(layout.prefix, device=device)
        self._lead_N = torch.arange(layout.leads * layout.lead, device=device)
        self._steps: dict[torch.device, _Step] = {}
        self.lengths = [0] * layout.entries
        """Tokens that entries hold."""

    def store_entry(self, entry: int, prefilled: DynamicCache) -> None:
        """Keep what image and prompt prefilled, for all captions that take a seat there."""
        for layer, keys_HLD, values_HLD in self._beside(prefilled):
            layer.prefix_keys[entry, :, : keys_HLD.shape[1]] = keys_HLD.nan_to_num()
            layer.prefix_values[entry, :, : values_HLD.shape[1]] = values_HLD.nan_to_num()
        self._lengths_E[entry] = self.lengths[entry] = prefilled.get_seq_length()

    def store_lead(self, lead: int, prefilled: DynamicCache) -> None:
        """Keep what a prompt without image prefilled, for all rows that follow it."""
        length = prefilled.get_seq_length()
        start = lead * self.layout.lead
        for layer, keys_HLD, values_HLD in self._beside(prefilled):
            layer.lead_keys[:, start : start + length] = keys_HLD.nan_to_num()
            layer.lead_values[:, start : start + length] = values_HLD.nan_to_num()
        self._lengths_K[lead] = length

    def clear_rows(self, rows: Sequence[int]) -> None:
        """Zero the rows' own keys and values: NaN would reach whoever is decoded there next, mask or not."""
        for layer in self._layers:
            layer.keys[rows] = 0.0
            layer.values[rows] = 0.0

    def feed(self, fed: Fed, extent: Extent) -> torch.Tensor:
        """Begin a step; the position of every row's token, (R,).

        Rows attend to ``extent.own`` tokens of their own, masked where they hold fewer. An idle row (nothing filled,
        no source) attends to its own token.
        """
        readers = self.layout.readers
        entry_Q, lead_M = fed.source_R[:readers], fed.source_R[readers:]
        lengths_Q1, lengths_M1 = self._lengths_E[entry_Q][:, None], self._lengths_K[lead_M][:, None]
        own_RT = _masked(self._own_T[: extent.own] <= fed.fill_R[:, None])
        in_lead_MN = self._lead_N[: extent.leads * self.layout.lead] - lead_M[:, None] * self.layout.lead
        prefix_QP = _masked(self._prefix_P[: extent.prefix] < lengths_Q1)
        lead_MN = _masked((in_lead_MN >= 0) & (in_lead_MN < lengths_M1))
        seats = slice(None), fed.seat_R[:readers]
        step = _Step(
            extent,
            fed.fill_R,
            write=(entry_Q, *seats),
            read=(entry_Q.clamp(max=max(extent.entries - 1, 0)), *seats),
            read_Q11L=torch.cat((prefix_QP, own_RT[:readers]), dim=-1)[:, None, None],
            lead_M11L=torch.cat((lead_MN, own_RT[readers:]), dim=-1)[:, None, None],
        )
        self._steps = {fed.fill_R.device: step}
        return torch.cat((lengths_Q1, lengths_M1))[:, 0] + fed.fill_R

    def update(
        self, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """transformers' way to store keys and values; ``attend`` does it, once it has the queries too."""
        return key, value

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store a token of every row and let it attend: (R, 1, heads, D) of queries (R, heads, 1, D)."""
        layer, step = self._layers[number], self._step_on(query.device)
        rows, heads = key.shape[:2]
        own, readers, prefix = step.extent.own, self.layout.readers, step.extent.prefix
        leads = step.extent.leads * self.layout.lead
        layer.keys[layer.rows_R, :, step.fill_R] = key[:, :, 0]
        layer.values[layer.rows_R, :, step.fill_R] = value[:, :, 0]
        query_RHGD = query.view(rows, heads, -1, query.shape[-1]) * scale
        scores_RHGT = query_RHGD @ layer.keys[:, :, :own].transpose(-1, -2)
        weights: list[torch.Tensor] = []
        if readers:
            scores_QHGP = layer.prefix_scores(query_RHGD[:readers], step)
            weights_QHGL = _weights(scores_QHGP, scores_RHGT[:readers], step.read_Q11L)
            weights.append(weights_QHGL[..., prefix:])
        if readers < rows:
            scores_MHGN = _by_head(query_RHGD[readers:], layer.lead_keys[:, :leads].transpose(-1, -2))
            weights_MHGL = _weights(scores_MHGN, scores_RHGT[readers:], step.lead_M11L)
            weights.append(weights_MHGL[..., leads:])
        weights_RHGT = weights[0] if len(weights) == 1 else torch.cat(weights)
        output_RHGD = weights_RHGT @ layer.values[:, :, :own]
        if readers:
            output_RHGD[:readers] += layer.prefix_output(weights_QHGL[..., :prefix], step)
        if readers < rows:
            output_RHGD[readers:] += _by_head(weights_MHGL[..., :leads], layer.lead_values[:, :leads])
        return output_RHGD.flatten(1, 2).unsqueeze(1)

    def _step_on(self, device: torch.device) -> _Step:
        """The step beside a layer, which may be on another device than the first."""
        if device not in self._steps:
            self._steps[device] = next(iter(self._steps.values())).on(device)
        return self._steps[device]

    def _beside(self, prefilled: DynamicCache) -> Iterator[tuple[_Layer, torch.Tensor, torch.Tensor]]:
        """Each layer's memory with what one prompt prefilled for it, which the first one says the shape of."""
        if not self._layers:
            self._layers = [_Layer(self.layout, source.keys) for source in prefilled.layers]
        for layer, source in zip(self._layers, prefilled.layers, strict=True):
            yield layer, source.keys[0], source.values[0]


Seats = tuple[torch.Tensor, slice, torch.Tensor]
"""Index of each reading row's place among (entries, heads, seats)."""


@dataclass(frozen=True)
class _Step:
    """What all layers of a step need."""

    extent: Extent
    fill_R: torch.Tensor
    write: Seats
    """Where rows put what they ask of an entry; those without one beyond the last."""
    read: Seats
    """Where they find the answer; those without one anywhere."""
    read_Q11L: torch.Tensor
    """Mask of rows that read an entry: 0 or minus infinity."""
    lead_M11L: torch.Tensor
    """Mask of the other rows."""

    def on(self, device: torch.device) -> _Step:
        """The same on another device."""
        write, read = ((entry.to(device), heads, seat.to(device)) for entry, heads, seat in (self.write, self.read))
        fill_R, read_Q11L, lead_M11L = (each.to(device) for each in (self.fill_R, self.read_Q11L, self.lead_M11L))
        return _Step(self.extent, fill_R, write, read, read_Q11L, lead_M11L)


class _Layer:
    """The memory of one layer, on the device and in the dtype of the layer's own keys."""

    def __init__(self, layout: CacheLayout, like_1HLD: torch.Tensor) -> None:
        _, heads, _, width = like_1HLD.shape
        self.keys = like_1HLD.new_zeros(layout.rows, heads, layout.own, width)
        self.values = torch.zeros_like(self.keys)
        self.rows_R = torch.arange(layout.rows, device=like_1HLD.device)
        self.prefix_keys = like_1HLD.new_zeros(layout.entries, heads, layout.prefix, width)
        self.prefix_values = torch.zeros_like(self.prefix_keys)
        self.lead_keys = like_1HLD.new_zeros(heads, layout.leads * layout.lead, width)
        self.lead_values = torch.zeros_like(self.lead_keys)
        # One entry more: rows without an entry are sent there.
        grid = layout.entries + 1, heads, layout.seats, layout.group
        self._queries = like_1HLD.new_zeros(*grid, width)
        self._weights = like_1HLD.new_zeros(*grid, layout.prefix)

    def prefix_scores(self, query_QHGD: torch.Tensor, step: _Step) -> torch.Tensor:
        """Scores of rows against their entries, (Q, H, G, P); an entry is read once for all its seats."""
        entries, prefix = step.extent.entries, step.extent.prefix
        self._queries[step.write] = query_QHGD
        keys_EHPD = self.prefix_keys[:entries, :, :prefix]
        scores_EHXP = self._queries[:entries].flatten(2, 3) @ keys_EHPD.transpose(-1, -2)
        return self._of_rows(scores_EHXP, step)

    def prefix_output(self, weights_QHGP: torch.Tensor, step: _Step) -> torch.Tensor:
        """Weighted sums of the entries' values, (Q, H, G, D)."""
        entries, prefix = step.extent.entries, step.extent.prefix
        weights_EHSGP = self._weights[..., :prefix]
        weights_EHSGP[step.write] = weights_QHGP
        output_EHXD = weights_EHSGP[:entries].flatten(2, 3) @ self.prefix_values[:entries, :, :prefix]
        return self._of_rows(output_EHXD, step)

    def _of_rows(self, of_entries_EHXD: torch.Tensor, step: _Step) -> torch.Tensor:
        """What belongs to each row; something finite for rows without an entry."""
        entries, heads, _, width = of_entries_EHXD.shape
        gathered: torch.Tensor = of_entries_EHXD.view(entries, heads, *self._queries.shape[2:4], width)[step.read]
        return gathered


def _masked(seen: torch.Tensor) -> torch.Tensor:
    """What is added to scores: 0 where a token is seen, else minus infinity."""
    return torch.where(seen, 0.0, -torch.inf)


def _weights(shared_RHGP: torch.Tensor, own_RHGT: torch.Tensor, mask_R11L: torch.Tensor) -> torch.Tensor:
    """Softmax over what rows share and their own, in float32, as transformers' own attention computes it."""
    scores_RHGL = torch.cat((shared_RHGP, own_RHGT), dim=-1).add_(mask_R11L)
    return F.softmax(scores_RHGL, dim=-1, dtype=torch.float32).to(own_RHGT.dtype)


def _by_head(rows_MHGA: torch.Tensor, shared_HAB: torch.Tensor) -> torch.Tensor:
    """Products of every row with what all rows share, (M, H, G, B): one matrix product a head."""
    rows, heads, group, _ = rows_MHGA.shape
    product_HXB = rows_MHGA.transpose(0, 1).flatten(1, 2) @ shared_HAB
    return product_HXB.view(heads, rows, group, -1).transpose(0, 1)
