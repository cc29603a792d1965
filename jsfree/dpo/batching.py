"""From selected pairs to tensors: both captions of a pair after one prefix, in one row.

A row is [prompt with image | chosen | rejected], padded on the right. Both captions see the prefix and themselves, not
each other, and both begin at the position after the prefix, so the row gives what two rows of their own would give,
and the prefix, most of it visual tokens, is computed once. Completion tokens are the very tokens that were generated
(a stored caption is never tokenised again); the end token belongs to the completion.

Shape suffixes: B pairs (rows), L positions of a row, T completion tokens of the batch.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from jsfree.config import Source
from jsfree.errors import StageError
from jsfree.images.decoding import load_image
from jsfree.models.loading import Captioner
from jsfree.schemas import SelectedPair

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
PREFIX, CHOSEN, REJECTED, PADDING = range(4)


@dataclass(frozen=True)
class PairBatch:
    """Pairs as tensors.

    The images are ``pixels`` (B, 3, height, width), or ``features`` (B, visual tokens, width) where the vision tower
    has seen them already.
    """

    ids_BL: torch.Tensor
    positions_BL: torch.Tensor
    segments_BL: torch.Tensor
    """``PREFIX``, ``CHOSEN``, ``REJECTED`` or ``PADDING``."""
    rows_T: torch.Tensor
    sources_T: torch.Tensor
    """Where in its row the model predicts a completion token."""
    targets_T: torch.Tensor
    """The completion tokens: of all chosen captions, then of all rejected ones."""
    lengths: list[int]
    """Tokens of each caption, in the order of ``targets_T``, (2 B)."""
    pixels: torch.Tensor | None = None
    features: torch.Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> PairBatch:
        """The batch on a device, its images in the model's dtype."""

        def images(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device=device, dtype=dtype)

        return replace(
            self,
            ids_BL=self.ids_BL.to(device),
            positions_BL=self.positions_BL.to(device),
            segments_BL=self.segments_BL.to(device),
            rows_T=self.rows_T.to(device),
            sources_T=self.sources_T.to(device),
            targets_T=self.targets_T.to(device),
            pixels=images(self.pixels),
            features=images(self.features),
        )


def attention_mask(segments_BL: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention's scores, (B, 1, L, L): 0 where a position sees another, the lowest number elsewhere.

    A position sees those up to itself in the prefix and in its own caption.
    """
    length = segments_BL.shape[1]
    keys, queries = segments_BL[:, None, None, :], segments_BL[:, None, :, None]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments_BL.device).tril()
    seen = earlier & ((keys == PREFIX) | (keys == queries))
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def sees(segments_BL: torch.Tensor) -> Callable[..., torch.Tensor]:
    """The same as a rule (row, head, query, key) for flex attention, which skips blocks that nobody sees."""

    def rule(row: torch.Tensor, _: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        segment = segments_BL[row, key]
        return (key <= query) & ((segment == PREFIX) | (segment == segments_BL[row, query]))

    return rule


def collate(
    pairs: Sequence[SelectedPair],
    captioner: Captioner,
    limits: Source,
    features: Sequence[torch.Tensor] | None = None,
) -> PairBatch:
    """Tensors of ``pairs``, on the CPU; of any thread.

    Args:
        features: what the vision tower makes of each image; the images are not read then.

    Raises:
        RowError: an image that could be loaded when its captions were generated cannot be loaded now.
    """
    prompts = [captioner.prompt_ids(pair["prompt"], image=True) for pair in pairs]
    batch = _in_rows(pairs, prompts)
    if features is not None:
        return replace(batch, features=torch.stack(list(features)))
    # One decoded image at a time: each may take hundreds of megabytes.
    return replace(
        batch, pixels=torch.stack([captioner.pixels(load_image(pair["image"], limits)[0]) for pair in pairs])
    )


def _in_rows(pairs: Sequence[SelectedPair], prompts: Sequence[Sequence[int]]) -> PairBatch:
    length = max(map(length_of, pairs, prompts))
    ids = torch.zeros(len(pairs), length, dtype=torch.int64)
    positions = torch.zeros_like(ids)
    segments = torch.full_like(ids, PADDING)
    predicted: dict[int, list[tuple[int, list[int], list[int]]]] = {CHOSEN: [], REJECTED: []}
    for row, (pair, prompt) in enumerate(zip(pairs, prompts, strict=True)):
        first = len(prompt)
        ids[row, :first] = torch.tensor(prompt)
        positions[row, :first] = torch.arange(first)
        segments[row, :first] = PREFIX
        at = first
        for segment, caption in ((CHOSEN, pair["chosen"]), (REJECTED, pair["rejected"])):
            tokens = list(caption["token_ids"])
            end = at + len(tokens)
            ids[row, at:end] = torch.tensor(tokens)
            positions[row, at:end] = torch.arange(first, first + len(tokens))
            segments[row, at:end] = segment
            # The last of the prefix predicts the first token, each token the next one.
            predicted[segment].append((row, [first - 1, *range(at, end - 1)], tokens))
            at = end
    every = [*predicted[CHOSEN], *predicted[REJECTED]]
    return PairBatch(
        ids,
        positions,
        segments,
        rows_T=torch.tensor([row for row, _, tokens in every for _ in tokens]),
        sources_T=torch.tensor([source for _, sources, _ in every for source in sources]),
        targets_T=torch.tensor([token for _, _, tokens in every for token in tokens]),
        lengths=[len(tokens) for _, _, tokens in every],
    )


def length_of(pair: SelectedPair, prompt: Sequence[int] = ()) -> int:
    """Positions that a pair takes in its row; without the prompt, what tells it from others."""
    return len(prompt) + len(pair["chosen"]["token_ids"]) + len(pair["rejected"]["token_ids"])


def require_context(pairs: Sequence[SelectedPair], captioner: Captioner) -> None:
    """See that the model has a position for every token: nothing of a pair is ever cut.

    Raises:
        StageError: a caption with its image and prompt is longer than the model's context.
    """
    room = int(captioner.model.config.get_text_config().max_position_embeddings)
    prefixes = {prompt: len(captioner.prompt_ids(prompt, image=True)) for prompt in {pair["prompt"] for pair in pairs}}
    for pair in pairs:
        prefix, caption = prefixes[pair["prompt"]], max(len(pair[role]["token_ids"]) for role in ("chosen", "rejected"))
        if prefix + caption > room:
            raise StageError(
                f"pair {pair['sample_id']}: image and prompt take {prefix} positions and a caption {caption}, more than"
                f" the {room} of the model",
                "generate shorter captions (generate.decoding.max_new_tokens), or import"
                " none that long (imported.max_tokens)",
            )


def order_of_epoch(pairs: int, seed: int, epoch: int) -> array[int]:
    """Order of the pairs in an epoch: a function of (pairs, seed, epoch), not of what happened before."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return array("q", torch.randperm(pairs, generator=generator).numpy().tobytes())


def micro_batches(
    lengths: Sequence[int] | NDArray[np.int32], step_indices: Sequence[int], micro: int, rank: int, world: int
) -> list[list[int]]:
    """Indices of the pairs that worker ``rank`` of ``world`` takes in a step, ``micro`` at a time.

    Pairs of like length go together, over all workers, so that there is little padding and nobody waits: which pairs a
    step has is settled before, and its gradient is their mean however they are grouped.

    Args:
        lengths: of all pairs.
        step_indices: the step's pairs.
    """
    ordered = sorted(step_indices, key=lambda index: (-lengths[index], index))
    together = micro * world
    return [ordered[start : start + together][rank::world] for start in range(0, len(ordered), together)]


def prefetched(load: Callable[[Item], Loaded], items: Iterable[Item]) -> Iterator[Loaded]:
    """``load`` of each item, the next one in a thread while its user works with this one."""
    with ThreadPoolExecutor(1) as loader:
        waiting = None
        for item in items:
            following = loader.submit(load, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
