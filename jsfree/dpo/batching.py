"""Tensors of preference pairs: all captions of a pair in one row, after one shared prefix.

A row is [prompt with image | chosen | rejected | target], padded on the right; ``RunConfig.trained_captions`` says
which captions it has. Each caption attends to the prefix and to itself, not to other captions, and all start at the
position after the prefix. So a row gives the same log-probabilities as separate rows, while the prefix, which is mostly
visual tokens, is computed once. Completion tokens are those that were generated, never a stored text tokenised again;
they include the end token.

Shape suffixes: B pairs (rows), L positions of a row, T completion tokens of the batch.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from jsfree.config import Source
from jsfree.errors import StageError
from jsfree.images.decoding import load_image
from jsfree.models.families.base import ImageInputs, Prompt, Tensors, join_images, moved
from jsfree.models.loading import Captioner
from jsfree.schemas import Role, SelectedPair

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
PAIR: tuple[Role, ...] = ("chosen", "rejected")
"""The captions of a selected pair; with ``select.strategy: coverage`` there is also ``target``."""
PADDING, PREFIX, CHOSEN, REJECTED = range(-1, 3)


@dataclass(frozen=True)
class PairBatch:
    """Pairs as tensors.

    ``images`` are those of ``families.base.join_images``: pixels, or features of the vision tower that were computed
    earlier.
    """

    ids_BL: torch.Tensor
    positions: torch.Tensor
    """(B, L), or (3, B, L) for M-RoPE."""
    segments_BL: torch.Tensor
    """``PREFIX``, the number of a caption in its row, from 1 (``CHOSEN``, ``REJECTED``), or ``PADDING``."""
    rows_T: torch.Tensor
    """Row of each completion token."""
    columns_T: torch.Tensor
    """Column whose hidden state predicts the completion token."""
    targets_T: torch.Tensor
    """The completion tokens: those of all captions of the first role, then those of the next one."""
    lengths: dict[Role, list[int]]
    """Tokens of each caption, by role in the order of ``targets_T``."""
    images: Tensors = field(default_factory=dict)

    def to(self, device: torch.device, dtype: torch.dtype) -> PairBatch:
        """Move the batch to a device and convert its images to the model's dtype."""
        return replace(
            self,
            ids_BL=self.ids_BL.to(device),
            positions=self.positions.to(device),
            segments_BL=self.segments_BL.to(device),
            rows_T=self.rows_T.to(device),
            columns_T=self.columns_T.to(device),
            targets_T=self.targets_T.to(device),
            images=moved(self.images, device, dtype),
        )


def attention_mask(
    segments_BL: torch.Tensor, dtype: torch.dtype, blocks_BL: torch.Tensor | None = None
) -> torch.Tensor:
    """Additive attention mask, (B, 1, L, L): 0 where a query may attend to a key, else the dtype's lowest number.

    A position attends to earlier positions of the prefix and of its own caption, and to itself.

    Args:
        blocks_BL: positions of each row's image, if they also attend to each other.
    """
    length = segments_BL.shape[1]
    keys, queries = segments_BL[:, None, None, :], segments_BL[:, None, :, None]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments_BL.device).tril()
    visible = causal & ((keys == PREFIX) | (keys == queries))
    if blocks_BL is not None:
        visible = visible | (blocks_BL[:, None, None, :] & blocks_BL[:, None, :, None])
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def flex_mask(segments_BL: torch.Tensor, blocks_BL: torch.Tensor | None = None) -> Callable[..., torch.Tensor]:
    """``attention_mask`` as a ``mask_mod(row, head, query, key)`` of flex attention, which skips masked blocks."""

    def mask_mod(row: torch.Tensor, _: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        segment = segments_BL[row, key]
        visible = (key <= query) & ((segment == PREFIX) | (segment == segments_BL[row, query]))
        return visible if blocks_BL is None else visible | (blocks_BL[row, key] & blocks_BL[row, query])

    return mask_mod


def collate(
    pairs: Sequence[SelectedPair],
    captioner: Captioner,
    limits: Source,
    features: Sequence[ImageInputs] | None = None,
    roles: Sequence[Role] = PAIR,
) -> PairBatch:
    """Build the batch of some pairs, on the CPU. Thread-safe.

    Args:
        pairs: the pairs.
        captioner: its processor prepares prompts and images.
        limits: what an image file may have (``Source.max_pixels`` and others).
        features: vision features of each image; the images are not read then.
        roles: the captions of each pair that the batch contains.

    Raises:
        RowError: an image that could be loaded when its captions were generated cannot be loaded now.
        StageError: a pair does not fit into the model's context.
    """
    # One decoded image at a time: each may take hundreds of megabytes.
    images = features or image_inputs(pairs, captioner, limits)
    prompts = [captioner.prompt(pair["prompt"], image) for pair, image in zip(pairs, images, strict=True)]
    for pair, prompt in zip(pairs, prompts, strict=True):
        require_context(pair, prompt, captioner, roles)
    captions = [{role: tokens_of(pair, role) for role in roles} for pair in pairs]
    return pack(prompts, captions, images)


def image_inputs(pairs: Sequence[SelectedPair], captioner: Captioner, limits: Source) -> list[ImageInputs]:
    """Read and preprocess the images of pairs.

    Raises:
        RowError: as ``collate``.
    """
    return [captioner.inputs(load_image(pair["image"], limits).image) for pair in pairs]


def pack(
    prompts: Sequence[Prompt], captions: Sequence[Mapping[Role, Sequence[int]]], images: Sequence[ImageInputs] = ()
) -> PairBatch:
    """Lay out token ids, positions and segments.

    Args:
        prompts: the prompt of each row, with its image tokens.
        captions: tokens of the captions of each row, by role; rows may have different roles.
        images: the image of each row.
    """
    length = max(len(prompt) + sum(map(len, row.values())) for prompt, row in zip(prompts, captions, strict=True))
    ids = torch.zeros(len(prompts), length, dtype=torch.int64)
    positions = torch.zeros(len(prompts[0].positions), *ids.shape, dtype=torch.int64)
    segments = torch.full_like(ids, PADDING)
    completions: dict[Role, list[tuple[int, list[int], Sequence[int]]]] = {}
    for row, (prompt, of_row) in enumerate(zip(prompts, captions, strict=True)):
        first = len(prompt)
        ids[row, :first] = torch.tensor(prompt.ids)
        positions[:, row, :first] = prompt.positions
        segments[row, :first] = PREFIX
        start = first
        for segment, (role, tokens) in enumerate(of_row.items(), CHOSEN):
            end = start + len(tokens)
            ids[row, start:end] = torch.tensor(list(tokens))
            positions[:, row, start:end] = prompt.next_position + torch.arange(len(tokens))
            segments[row, start:end] = segment
            # The last prefix token predicts the first completion token, each completion token the next one.
            completions.setdefault(role, []).append((row, [first - 1, *range(start, end - 1)], tokens))
            start = end
    ordered = [completion for of_role in completions.values() for completion in of_role]
    return PairBatch(
        ids_BL=ids,
        positions=positions[0] if len(positions) == 1 else positions,
        segments_BL=segments,
        rows_T=torch.tensor([row for row, _, tokens in ordered for _ in tokens]),
        columns_T=torch.tensor([column for _, columns, _ in ordered for column in columns]),
        targets_T=torch.tensor([token for _, _, tokens in ordered for token in tokens]),
        lengths={role: [len(tokens) for _, _, tokens in of_role] for role, of_role in completions.items()},
        images=join_images(images) if images else {},
    )


def tokens_of(pair: SelectedPair, role: Role) -> Sequence[int]:
    """Tokens of a caption of a pair, by role."""
    captions: Mapping[str, Any] = pair
    tokens: Sequence[int] = captions[role]["token_ids"]
    return tokens


def pair_length(pair: SelectedPair, roles: Sequence[Role] = PAIR) -> int:
    """Tokens of the captions of a pair."""
    return sum(len(tokens_of(pair, role)) for role in roles)


def require_context(pair: SelectedPair, prompt: Prompt, captioner: Captioner, roles: Sequence[Role] = PAIR) -> None:
    """Check that a pair fits into the model's context, and into its sliding window; pairs are never truncated.

    Raises:
        StageError: a caption with its image and prompt does not fit, or has no tokens.
    """
    lengths = {role: len(tokens_of(pair, role)) for role in roles}
    empty = [role for role, length in lengths.items() if not length]
    if empty:
        raise StageError(
            f"pair {pair['sample_id']}: its {empty[0]} caption has no tokens, not even the end token",
            "redo the selection with --restart select; if the error persists, report it as a bug of jsfree",
        )
    caption, longest = max(lengths.values()), captioner.longest_caption(prompt)
    if caption > longest:
        raise StageError(
            f"pair {pair['sample_id']}: image and prompt take {prompt.next_position} positions and a caption {caption},"
            f" more than the {prompt.next_position + longest} of the model",
            "generate shorter captions (generate.decoding.max_new_tokens), or import"
            " none that long (imported.max_tokens)",
        )


def check_context_length(pairs: Sequence[SelectedPair], captioner: Captioner, roles: Sequence[Role] = PAIR) -> None:
    """``require_context`` of pairs whose images are not read, as if all images were small.

    Raises:
        StageError: as ``require_context``.
    """
    prompts = {text: captioner.prompt(text, captioner.blank) for text in {pair["prompt"] for pair in pairs}}
    for pair in pairs:
        require_context(pair, prompts[pair["prompt"]], captioner, roles)


def epoch_order(pairs: int, seed: int, epoch: int) -> array[int]:
    """Order of the pairs in an epoch: a pure function of its arguments, so that a resumed run repeats it."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return array("q", torch.randperm(pairs, generator=generator).numpy().tobytes())


def micro_batches(
    lengths: Sequence[int] | NDArray[np.int32], step_indices: Sequence[int], micro: int, rank: int, world: int
) -> list[list[int]]:
    """Split a step's pairs into micro batches; those of one worker.

    Pairs of similar length are grouped across all workers, which limits padding and waiting. The gradient of a step is
    the mean over its pairs, however they are grouped.

    Args:
        lengths: tokens of all pairs.
        step_indices: indices of the step's pairs.
        micro: pairs in a micro batch.
        rank: the worker.
        world: number of workers.
    """
    ordered = sorted(step_indices, key=lambda index: (-lengths[index], index))
    group = micro * world
    return [ordered[start : start + group][rank::world] for start in range(0, len(ordered), group)]


def prefetch(load: Callable[[Item], Loaded], items: Iterable[Item]) -> Iterator[Loaded]:
    """Yield ``load(item)`` for each item, loading the next one in a thread meanwhile."""
    with ThreadPoolExecutor(1) as loader:
        pending = None
        for item in items:
            following = loader.submit(load, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
