"""Gumbel-max sampling in two levels, with noise from a counter-based generator.

The noise of a token depends on (seed, round, sample, role, step) and on nothing else: not on the batch, the
worker or a retry. The generator is Philox (Salmon et al., SC 2011), numpy's, on the CPU wherever the model is.

The vocabulary is cut into blocks. The maximum of independent Gumbel variables with locations log p_i is a Gumbel
variable with location log sum p_i, so drawing the block by its mass, then the token in it by its probability, is
Gumbel-max over the whole vocabulary, with the noise of V / 64 + 64 numbers a token instead of V. It keeps what
Gumbel-max is taken for: a difference in the last bits of a probability hardly ever changes the token drawn.

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
AHEAD = 32
"""Tokens whose noise is made at once."""
NO_TOKEN = -1
"""Drawn from a row that gives no token any mass."""


def noise_key(seed: int, round_number: int, sample_id: str, role: str) -> int:
    """The key of one caption's random stream, 128 bits."""
    digest = hashlib.blake2b(f"{seed}\0{round_number}\0{sample_id}\0{role}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


class NoiseStream:
    """Standard Gumbel noise of one caption, for one token after the other."""

    def __init__(self, key: int, vocabulary: int) -> None:
        self._bits = np.random.Philox(key=key)
        self._width = noise_width(vocabulary)
        self._made: NDArray[np.float32] = np.empty((0, self._width), np.float32)
        self._next = 0

    def token(self) -> NDArray[np.float32]:
        """The next token's noise, (N,)."""
        if self._next == len(self._made):
            bits = self._bits.random_raw(AHEAD * self._width) >> np.uint64(11)
            uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53
            self._made = (-np.log(-np.log1p(-uniform))).astype(np.float32).reshape(AHEAD, self._width)
            self._next = 0
        self._next += 1
        made: NDArray[np.float32] = self._made[self._next - 1]
        return made


def noise_width(vocabulary: int) -> int:
    """Numbers of noise that a token takes."""
    return -(-vocabulary // BLOCK) + BLOCK


def draw(probs_BV: torch.Tensor, noise_BN: torch.Tensor, greedy_B: Sequence[bool]) -> torch.Tensor:
    """Next token of each row, (B,) int64: a sample of ``probs``, or the most probable token where greedy.

    A row without mass, or with NaN, has no next token: it gives ``NO_TOKEN``.

    Args:
        probs_BV: need not sum to 1; a token of probability 0 is never drawn.
        noise_BN: a row of ``NoiseStream.token`` for each.
        greedy_B: which rows are not sampled.
    """
    drawn_B = _drawn(probs_BV, noise_BN, greedy_B)
    has_mass_B = probs_BV.gather(1, drawn_B[:, None])[:, 0] > 0
    return torch.where(has_mass_B, drawn_B, NO_TOKEN)


def _drawn(probs_BV: torch.Tensor, noise_BN: torch.Tensor, greedy_B: Sequence[bool]) -> torch.Tensor:
    """As ``draw``, but some token where a row has no mass."""
    if all(greedy_B):
        return probs_BV.argmax(-1)
    blocks_BKL = F.pad(probs_BV, (0, -probs_BV.shape[1] % BLOCK)).reshape(len(probs_BV), -1, BLOCK)
    count = blocks_BKL.shape[1]
    block_B = (blocks_BKL.sum(-1).log() + noise_BN[:, :count]).argmax(-1)
    inside_BL = blocks_BKL[torch.arange(len(block_B), device=block_B.device), block_B]
    drawn_B: torch.Tensor = block_B * BLOCK + (inside_BL.log() + noise_BN[:, count:]).argmax(-1)
    # A row of NaN may lead into the padding behind the vocabulary.
    drawn_B = drawn_B.clamp(max=probs_BV.shape[1] - 1)
    if not any(greedy_B):
        return drawn_B
    return torch.where(torch.tensor(greedy_B, device=drawn_B.device), probs_BV.argmax(-1), drawn_B)
