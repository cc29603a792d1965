"""Gumbel-max sampling with noise from a counter-based generator.

The noise of a token depends on (seed, round, sample, role, step, token id) and on nothing else: not on the
batch, the worker or a retry. The generator is Philox4x32-10 (Salmon et al., SC 2011), written in torch's
integer arithmetic so that CPU and CUDA draw the same bits.

Shape suffixes: B rows, V vocabulary, W = ceil(V / 4) Philox blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

NoiseKey = tuple[int, int, int, int]  # four 32-bit words

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def noise_key(seed: int, round_number: int, sample_id: str, role: str) -> NoiseKey:
    """The key of one caption's random stream."""
    digest = hashlib.blake2b(f"{seed}\0{round_number}\0{sample_id}\0{role}".encode(), digest_size=16).digest()
    words = [int.from_bytes(digest[start : start + 4], "little") for start in range(0, 16, 4)]
    return (words[0], words[1], words[2], words[3])


def philox(counter: Sequence[torch.Tensor], key: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Philox4x32-10: four words of a counter and two of a key (int64 tensors of 32-bit values) -> four words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def gumbel(keys: Sequence[NoiseKey], steps: Sequence[int], vocabulary: int, device: torch.device) -> torch.Tensor:
    """Standard Gumbel noise for the next token of each row.

    Args:
        keys: one a row, from ``noise_key``.
        steps: index of the token to be drawn, one a row.

    Returns:
        (B, V) float32.
    """
    key_B4 = torch.tensor(keys, dtype=torch.int64, device=device)
    step_B1 = torch.tensor(steps, dtype=torch.int64, device=device)[:, None]
    block_1W = torch.arange((vocabulary + 3) // 4, dtype=torch.int64, device=device)[None]
    k0, k1, c2, c3 = (word[:, None] for word in key_B4.unbind(1))
    words = philox((block_1W + 0 * step_B1, step_B1 + 0 * block_1W, c2, c3), (k0, k1))
    word_BV = torch.stack(words, dim=-1).flatten(1)[:, :vocabulary]
    # -log1p(-u) is an exponential variate; it keeps full precision near u = 0, where float32 is dense, and
    # that is the end that decides which rare token wins.
    uniform_BV = (word_BV.to(torch.float32) + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-uniform_BV))


def draw(
    log_probs_BV: torch.Tensor, gumbel_BV: torch.Tensor, greedy_B: torch.Tensor, suppressed: Sequence[int] = ()
) -> torch.Tensor:
    """Next token of each row, (B,) int64: a sample of ``log_probs``, or the most probable token where greedy.

    Tokens in ``suppressed`` are never drawn.
    """
    scores_BV = log_probs_BV + gumbel_BV.masked_fill(greedy_B[:, None], 0.0)
    scores_BV[:, list(suppressed)] = -torch.inf
    return torch.argmax(scores_BV, dim=-1)


def _multiply(word: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a 64-bit product, in halves so that int64 does not overflow."""
    low_part = multiplier * (word & 0xFFFF)
    high_part = multiplier * (word >> 16)
    high = (high_part + (low_part >> 16)) >> 16
    low = (low_part + ((high_part & 0xFFFF) << 16)) & _MASK
    return high, low
