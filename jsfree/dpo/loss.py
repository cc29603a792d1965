"""The DPO loss (Eq. 1-2), as pure functions.

Shape suffixes: B pairs, R rows, L positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class PairLogps:
    """Summed log-probabilities of the chosen and the rejected completion of each pair, (B,) each."""

    chosen: torch.Tensor
    rejected: torch.Tensor


@dataclass(frozen=True)
class DPOTerms:
    """Loss and implicit rewards of each pair, (B,) each; rewards carry no gradient."""

    loss: torch.Tensor
    chosen_reward: torch.Tensor
    rejected_reward: torch.Tensor


def dpo(policy: PairLogps, reference: PairLogps, beta: float) -> DPOTerms:
    """Eq. 1-2: -log sigmoid(beta (log pi(y_w)/pi_0(y_w) - log pi(y_l)/pi_0(y_l))); the paper's beta is 1."""
    chosen = policy.chosen - reference.chosen
    rejected = policy.rejected - reference.rejected
    loss = -F.logsigmoid(beta * (chosen - rejected))
    return DPOTerms(loss, beta * chosen.detach(), beta * rejected.detach())


def completion_logps(logits_RLV: torch.Tensor, targets_RL: torch.Tensor, mask_RL: torch.Tensor) -> torch.Tensor:
    """Sum over a row's completion tokens of their log-probability, (R,) float32.

    Args:
        logits_RLV: logits that predict ``targets`` (already shifted by one).
        targets_RL: token ids.
        mask_RL: which positions belong to the completion.
    """
    logps_RLV = torch.log_softmax(logits_RLV.float(), dim=-1)
    logps_RL = logps_RLV.gather(-1, targets_RL[..., None]).squeeze(-1)
    return logps_RL.masked_fill(~mask_RL, 0.0).sum(-1)
