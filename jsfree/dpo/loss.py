"""The DPO loss (Eq. 1-2) and its variants, as pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from jsfree.config import Train


@dataclass(frozen=True)
class PairLogps:
    """Summed log-probabilities of the chosen and the rejected completion of each pair, (B,) each."""

    chosen: torch.Tensor
    rejected: torch.Tensor


@dataclass(frozen=True)
class Lengths:
    """Tokens of the chosen and the rejected completion of each pair, (B,) each."""

    chosen: torch.Tensor
    rejected: torch.Tensor


@dataclass(frozen=True)
class DPOTerms:
    """Loss and implicit rewards of each pair, (B,) each; rewards carry no gradient."""

    loss: torch.Tensor
    chosen_reward: torch.Tensor
    rejected_reward: torch.Tensor


def dpo(policy: PairLogps, reference: PairLogps, lengths: Lengths, settings: Train) -> DPOTerms:
    """The loss of each pair, as ``train.loss`` names it.

    With m the margin log pi(y_w)/pi_0(y_w) - log pi(y_l)/pi_0(y_l) and e ``train.label_smoothing``:

    - ``sigmoid``: -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m). e = 0 is Eq. 1-2, with beta = 1 there; e > 0
      takes that share of the pairs for inverted (conservative DPO).
    - ``ipo``: (m' - 1 / (2 beta))^2 (arXiv 2310.12036, Eq. 17), m' of log-probabilities averaged over tokens.
    """
    chosen = policy.chosen - reference.chosen
    rejected = policy.rejected - reference.rejected
    beta, smoothing = settings.beta, settings.label_smoothing
    if settings.loss == "ipo":
        loss = (chosen / lengths.chosen - rejected / lengths.rejected - 1 / (2 * beta)) ** 2
    else:
        margin = beta * (chosen - rejected)
        loss = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
    return DPOTerms(loss, beta * chosen.detach(), beta * rejected.detach())


def first_loss(settings: Train) -> float:
    """The loss while policy and reference are one model: the margin is 0."""
    return 1 / (2 * settings.beta) ** 2 if settings.loss == "ipo" else math.log(2)


def anchor(policy: PairLogps, lengths: Lengths) -> torch.Tensor:
    """Negative log-likelihood of the chosen captions, averaged over their tokens, (B,)."""
    return -policy.chosen / lengths.chosen
