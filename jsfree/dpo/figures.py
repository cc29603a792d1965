"""The figures of a training step: summed over the pairs of a micro batch, then averaged over all workers' pairs."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from jsfree.dpo.loss import DPOTerms, Lengths, PairLogps

Sums = dict[str, torch.Tensor]
"""Sum of each figure over some pairs, by name: scalars, float64. ``pairs`` is their number."""


def count_completions(lengths: Mapping[Any, Sequence[int]], device: torch.device) -> Sums:
    """Number of pairs of a micro batch, and of the tokens of all their completions (``lengths``, by role)."""
    pairs, tokens = len(next(iter(lengths.values()))), sum(map(sum, lengths.values()))
    return {"pairs": _number(pairs, device), "tokens": _number(tokens, device)}


def sum_preference(terms: DPOTerms, policy: PairLogps, lengths: Lengths, beta: float) -> Sums:
    """Sums of the DPO loss and its terms over the pairs of a micro batch.

    ``chosen_change`` is the change of the chosen caption's log-probability a token, in nats.
    """
    return _sums(
        {
            "chosen_length": lengths.chosen,
            "rejected_length": lengths.rejected,
            "loss": terms.loss,
            "chosen_reward": terms.chosen_reward,
            "rejected_reward": terms.rejected_reward,
            "margin": terms.chosen_reward - terms.rejected_reward,
            "accuracy": (terms.chosen_reward > terms.rejected_reward).float(),
            "chosen_logp": policy.chosen,
            "rejected_logp": policy.rejected,
            "chosen_change": terms.chosen_reward / beta / lengths.chosen,
        }
    )


def sum_nll(nll: torch.Tensor, weight: float, *, is_loss: bool) -> Sums:
    """Sum of the NLL per token, (B,), over a micro batch; ``is_loss``: it is the whole loss, with ``weight``."""
    return _sums({"nll": nll, "loss": weight * nll} if is_loss else {"nll": nll})


def add_sums(first: Sums, second: Sums) -> Sums:
    """Sums over the pairs of both; ``first`` may be empty."""
    return {name: first[name] + value if first else value for name, value in second.items()}


def mean_figures(sums: Sums) -> tuple[dict[str, float], float]:
    """Averages over the pairs of all workers, and the number of their completion tokens; every worker must call."""
    exchanged = torch.stack(list(sums.values())).float()
    dist.all_reduce(exchanged)
    totals = dict(zip(sums, exchanged.tolist(), strict=True))
    pairs, tokens = totals.pop("pairs"), totals.pop("tokens")
    return {name: total / pairs for name, total in totals.items()}, tokens


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in bytes: allocated on its GPU, or resident where it has none."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _number(value: float, device: torch.device) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, device=device)


def _sums(per_pair: dict[str, torch.Tensor]) -> Sums:
    return {name: values.detach().sum().double() for name, values in per_pair.items()}
