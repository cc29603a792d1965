"""Gumbel-max sampling in two levels, with noise from a counter-based generator.

The noise of a token depends only on (seed, round, sample, role, step), not on the batch, the worker or a retry. The
generator is numpy's Philox (Salmon et al., SC 2011), on the CPU whatever device the model is on.

The vocabulary is split into blocks. The maximum of independent Gumbel variables with locations log p_i is a Gumbel
variable with location log sum p_i. So drawing a block by its mass, then a token of it by its probability, is
Gumbel-max over the whole vocabulary, with V / 64 + 64 numbers of noise a token instead of V. As in Gumbel-max, a
difference in the last bits of a probability hardly ever changes the token.

Shape suffixes: B rows, V vocabulary, K = ceil(V / 64) blocks, L = 64 tokens of a block, N = K + L.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

BLOCK = 64
CHUNK = 32
"""Tokens whose noise is generated at once."""
NO_TOKEN = -1
"""The result for a row without any probability mass."""


def noise_key(seed: int, round_number: int, sample_id: str, role: str) -> int:
    """Key of a caption's random stream, 128 bits."""
    digest = hashlib.blake2b(f"{seed}\0{round_number}\0{sample_id}\0{role}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


class NoiseStream:
    """Standard Gumbel noise of one caption, token by token."""

    def __init__(self, key: int, vocabulary: int) -> None:
        self._generator = np.random.Philox(key=key)
        self._width = noise_width(vocabulary)
        self._chunk: NDArray[np.float32] = np.empty((0, self._width), np.float32)
        self._next = 0

    def next_token(self) -> NDArray[np.float32]:
        """The next token's noise, (N,)."""
        if self._next == len(self._chunk):
            bits = self._generator.random_raw(CHUNK * self._width) >> np.uint64(11)
            uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53
            self._chunk = (-np.log(-np.log1p(-uniform))).astype(np.float32).reshape(CHUNK, self._width)
            self._next = 0
        self._next += 1
        noise: NDArray[np.float32] = self._chunk[self._next - 1]
        return noise


def noise_width(vocabulary: int) -> int:
    """Numbers of noise a token, N."""
    return -(-vocabulary // BLOCK) + BLOCK


def sample_tokens(probs_BV: torch.Tensor, noise_BN: torch.Tensor, greedy_B: Sequence[bool]) -> torch.Tensor:
    """Sample the next token of each row, or take the most probable one where greedy, (B,) int64.

    A row without mass, or with NaN, gives ``NO_TOKEN``.

    Args:
        probs_BV: need not be normalised; a token of probability 0 is never sampled.
        noise_BN: ``NoiseStream.next_token`` of each row.
        greedy_B: which rows take the most probable token.
    """
    token_B = _sample(probs_BV, noise_BN, greedy_B)
    has_mass_B = probs_BV.gather(1, token_B[:, None])[:, 0] > 0
    return torch.where(has_mass_B, token_B, NO_TOKEN)


def _sample(probs_BV: torch.Tensor, noise_BN: torch.Tensor, greedy_B: Sequence[bool]) -> torch.Tensor:
    """As ``sample_tokens``, but an arbitrary token for rows without mass."""
    if all(greedy_B):
        return probs_BV.argmax(-1)
    blocks_BKL = F.pad(probs_BV, (0, -probs_BV.shape[1] % BLOCK)).reshape(len(probs_BV), -1, BLOCK)
    count = blocks_BKL.shape[1]
    block_B = (blocks_BKL.sum(-1).log() + noise_BN[:, :count]).argmax(-1)
    in_block_BL = blocks_BKL[torch.arange(len(block_B), device=block_B.device), block_B]
    token_B: torch.Tensor = block_B * BLOCK + (in_block_BL.log() + noise_BN[:, count:]).argmax(-1)
    # NaN may give an index in the padding after the vocabulary.
    token_B = token_B.clamp(max=probs_BV.shape[1] - 1)
    if not any(greedy_B):
        return token_B
    return torch.where(torch.tensor(greedy_B, device=token_B.device), probs_BV.argmax(-1), token_B)
