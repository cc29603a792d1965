"""The figures of a training step, which workers sum over their pairs."""

from __future__ import annotations

import resource

import torch

from jsfree.dpo.loss import DPOTerms, Lengths, PairLogps

FIGURES = (
    "pairs", "chosen_length", "rejected_length", "loss", "chosen_reward", "rejected_reward", "accuracy",
    "chosen_logp", "rejected_logp", "chosen_change",
)  # fmt: skip


def summed(terms: DPOTerms, policy: PairLogps, lengths: Lengths, beta: float) -> torch.Tensor:
    """The figures of a micro batch, summed over its pairs, in the order of ``FIGURES``.

    ``chosen_change`` is by how much the chosen caption's log-probability has changed, a token.
    """
    per_pair = (
        lengths.chosen,
        lengths.rejected,
        terms.loss.detach(),
        terms.chosen_reward,
        terms.rejected_reward,
        (terms.chosen_reward > terms.rejected_reward).float(),
        policy.chosen.detach(),
        policy.rejected.detach(),
        terms.chosen_reward / beta / lengths.chosen,
    )
    return torch.tensor([len(lengths.chosen), *(float(values.sum()) for values in per_pair)], dtype=torch.float64)


def peak_memory(device: torch.device) -> float:
    """The most bytes that this process had: on its GPU, or in memory where it has none."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
