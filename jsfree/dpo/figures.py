"""The figures of a training step: summed over the pairs of a micro batch, then averaged over all workers' pairs."""

from __future__ import annotations

import resource

import torch
import torch.distributed as dist

from jsfree.dpo.loss import DPOTerms, Lengths, PairLogps

NAMES = (
    "pairs", "chosen_length", "rejected_length", "loss", "chosen_reward", "rejected_reward", "accuracy",
    "chosen_logp", "rejected_logp", "chosen_change",
)  # fmt: skip
"""Figures in the order in which workers exchange them."""
Sums = dict[str, torch.Tensor]
"""Sum of each figure over some pairs, by name: scalars, float64."""


def zero_sums(device: torch.device) -> Sums:
    """Sums over no pairs."""
    return {name: torch.zeros((), dtype=torch.float64, device=device) for name in NAMES}


def sum_figures(terms: DPOTerms, policy: PairLogps, lengths: Lengths, beta: float) -> Sums:
    """Sums over the pairs of a micro batch.

    ``chosen_change`` is the change of the chosen caption's log-probability a token, in nats.
    """
    per_pair = {
        "pairs": torch.ones_like(terms.loss),
        "chosen_length": lengths.chosen,
        "rejected_length": lengths.rejected,
        "loss": terms.loss,
        "chosen_reward": terms.chosen_reward,
        "rejected_reward": terms.rejected_reward,
        "accuracy": (terms.chosen_reward > terms.rejected_reward).float(),
        "chosen_logp": policy.chosen,
        "rejected_logp": policy.rejected,
        "chosen_change": terms.chosen_reward / beta / lengths.chosen,
    }
    return {name: values.detach().sum().double() for name, values in per_pair.items()}


def add_sums(first: Sums, second: Sums) -> Sums:
    """Sums over the pairs of both."""
    return {name: first[name] + second[name] for name in NAMES}


def mean_figures(sums: Sums) -> tuple[dict[str, float], float]:
    """Averages over the pairs of all workers, and the number of their completion tokens; every worker must call."""
    exchanged = torch.stack([sums[name] for name in NAMES]).float()
    dist.all_reduce(exchanged)
    totals = dict(zip(NAMES, exchanged.tolist(), strict=True))
    pairs = totals.pop("pairs")
    means = {name: total / pairs for name, total in totals.items()}
    means["margin"] = means["chosen_reward"] - means["rejected_reward"]
    return means, totals["chosen_length"] + totals["rejected_length"]


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in bytes: allocated on its GPU, or resident where it has none."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
