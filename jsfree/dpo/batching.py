"""From selected pairs to tensors, and from tensors to the log-probabilities of a model.

A row is [prompt with image | completion], padded on the right. Completion tokens are the very tokens that were
generated (a stored caption is never tokenised again); the end token belongs to the completion.

Shape suffixes: B pairs, R rows, L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jsfree.config import Source
from jsfree.dpo.loss import PairLogps, completion_logps
from jsfree.images import load_image
from jsfree.models import Captioner
from jsfree.schemas import SelectedPair


@dataclass(frozen=True)
class Rows:
    """Token rows: ids, which of them are no padding, and which belong to the completion, (R, L) each."""

    ids: torch.Tensor
    attention: torch.Tensor
    completion: torch.Tensor


@dataclass(frozen=True)
class PreferenceBatch:
    """Pairs as tensors: rows of the chosen and of the rejected caption, and one image a pair."""

    sample_ids: list[str]
    chosen: Rows
    rejected: Rows
    pixel_values: torch.Tensor
    first_completion: int
    """Position before which no row of the batch has a completion token."""

    @property
    def completion_tokens(self) -> int:
        """Completion tokens in the batch."""
        return int(self.chosen.completion.sum() + self.rejected.completion.sum())


def collate(pairs: Sequence[SelectedPair], captioner: Captioner, limits: Source) -> PreferenceBatch:
    """Tensors of ``pairs`` on the captioner's device.

    Raises:
        RowError: an image that could be loaded when its captions were generated cannot be loaded now.
    """
    prompts = [captioner.prompt_ids(pair["prompt"], image=True) for pair in pairs]
    completions = [*(pair["chosen"]["token_ids"] for pair in pairs), *(pair["rejected"]["token_ids"] for pair in pairs)]
    rows = _pad([*prompts, *prompts], completions, captioner.device)
    images = [load_image(pair["image"], limits)[0] for pair in pairs]
    half = len(pairs)
    return PreferenceBatch(
        [pair["sample_id"] for pair in pairs],
        Rows(rows.ids[:half], rows.attention[:half], rows.completion[:half]),
        Rows(rows.ids[half:], rows.attention[half:], rows.completion[half:]),
        captioner.pixel_values(images),
        min(len(prompt) for prompt in prompts),
    )


def pair_logps(forward: Callable[..., Any], batch: PreferenceBatch) -> PairLogps:
    """Log-probabilities of both captions of each pair in one forward pass.

    Args:
        forward: a LLaVA model, or the engine around it.
    """
    ids_RL = torch.cat([batch.chosen.ids, batch.rejected.ids])
    completion_RL = torch.cat([batch.chosen.completion, batch.rejected.completion])
    kept = ids_RL.shape[1] - batch.first_completion + 1
    output = forward(
        input_ids=ids_RL,
        attention_mask=torch.cat([batch.chosen.attention, batch.rejected.attention]),
        pixel_values=torch.cat([batch.pixel_values, batch.pixel_values]),
        use_cache=False,
        logits_to_keep=kept,
    )
    # The logits at a position predict the token after it.
    logps_R = completion_logps(output.logits[:, :-1], ids_RL[:, 1 - kept :], completion_RL[:, 1 - kept :])
    chosen, rejected = logps_R.chunk(2)
    return PairLogps(chosen, rejected)


def order_of_epoch(pairs: int, seed: int, epoch: int) -> list[int]:
    """Order of the pairs in an epoch: a function of (pairs, seed, epoch), not of what happened before."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(pairs, generator=generator).tolist()
    return order


def micro_batches(
    order: Sequence[int], step: int, pairs_per_step: int, micro: int, rank: int, world: int
) -> Iterator[list[int]]:
    """Indices of the pairs that worker ``rank`` of ``world`` takes in ``step`` of an epoch, ``micro`` at a time."""
    mine = order[step * pairs_per_step : (step + 1) * pairs_per_step][rank::world]
    for start in range(0, len(mine), micro):
        yield list(mine[start : start + micro])


def _pad(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device) -> Rows:
    length = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    ids = torch.zeros(len(prompts), length, dtype=torch.int64)
    attention = torch.zeros_like(ids)
    completion = torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, tokens) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(tokens)
        ids[row, :end] = torch.tensor([*prompt, *tokens])
        attention[row, :end] = 1
        completion[row, len(prompt) : end] = True
    return Rows(ids.to(device), attention.to(device), completion.to(device))
