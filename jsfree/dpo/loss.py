"""The DPO loss (paper, Eq. 1-2), its variants and the NLL, as pure functions of log-probabilities.

Every tensor is (B,): one number a pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F

LossKind = Literal["sigmoid", "ipo"]


@dataclass(frozen=True)
class PairLogps:
    """Summed log-probabilities of the chosen and the rejected completion of each pair, (B,) each."""

    chosen: torch.Tensor
    rejected: torch.Tensor

    @classmethod
    def of(cls, logps: Mapping[Any, torch.Tensor]) -> PairLogps:
        """The log-probabilities of a pair among those of all roles."""
        return cls(logps["chosen"], logps["rejected"])


@dataclass(frozen=True)
class Lengths:
    """Tokens of the chosen and the rejected completion of each pair, (B,) each."""

    chosen: torch.Tensor
    rejected: torch.Tensor

    @classmethod
    def of(cls, lengths: Mapping[Any, Sequence[int]], device: torch.device | None = None) -> Lengths:
        """The lengths of a pair among those of all roles."""
        return cls(*(torch.tensor(lengths[role], device=device) for role in ("chosen", "rejected")))


@dataclass(frozen=True)
class DPOTerms:
    """Loss and implicit rewards of each pair, (B,) each; rewards carry no gradient."""

    loss: torch.Tensor
    chosen_reward: torch.Tensor
    rejected_reward: torch.Tensor


def preference_loss(
    policy: PairLogps,
    reference: PairLogps,
    lengths: Lengths,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    kind: LossKind = "sigmoid",
) -> DPOTerms:
    """Loss of each pair.

    With policy pi, reference pi_0, chosen y_w, rejected y_l, the margin
    m = log pi(y_w)/pi_0(y_w) - log pi(y_l)/pi_0(y_l) and the label smoothing e:

    - ``sigmoid``: -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m). e = 0 is Eq. 1-2, which has beta = 1; e > 0
      assumes that this share of the labels is flipped (conservative DPO).
    - ``ipo``: (m' - 1 / (2 beta))^2 (arXiv 2310.12036, Eq. 17), with m' computed from log-probabilities averaged over
      tokens.

    Args:
        policy: log-probabilities under the policy, with gradient.
        reference: log-probabilities under the frozen reference.
        lengths: tokens of each completion; read by ``ipo`` only.
        beta: strength of the pull towards the reference, above 0.
        label_smoothing: e, in [0, 0.5); ignored by ``ipo``.
        kind: which loss.
    """
    chosen_logratio = policy.chosen - reference.chosen
    rejected_logratio = policy.rejected - reference.rejected
    if kind == "ipo":
        margin = chosen_logratio / lengths.chosen - rejected_logratio / lengths.rejected
        loss = (margin - 1 / (2 * beta)) ** 2
    else:
        logits = beta * (chosen_logratio - rejected_logratio)
        loss = -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
    return DPOTerms(loss, beta * chosen_logratio.detach(), beta * rejected_logratio.detach())


def initial_loss(beta: float, kind: LossKind = "sigmoid") -> float:
    """Loss before the first update where policy and reference are one model, so that the margin is 0."""
    return 1 / (2 * beta) ** 2 if kind == "ipo" else math.log(2)


def mean_nll(logps: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of completions, averaged over the tokens of each, (B,).

    Args:
        logps: summed log-probability of each completion, (B,).
        lengths: tokens of each completion, (B,).
    """
    return -logps / lengths
