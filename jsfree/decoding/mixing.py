"""Mixing of the conditional and the unconditional next-token distribution (Eq. 3), as pure functions.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch

Mixing = Literal["probability", "logit"]


def next_token_log_probs(
    conditional_BV: torch.Tensor,
    unconditional_BV: torch.Tensor,
    ratio_B: torch.Tensor,
    temperature_B: torch.Tensor,
    top_p_B: torch.Tensor,
    mixing: Mixing = "probability",
) -> torch.Tensor:
    """Log-probabilities that the next token is drawn from.

    ``probability`` is Eq. 3, t = (1 - h) t_c + h t_u, with temperature and nucleus applied to each path's
    distribution before mixing. ``logit`` is the geometric mixture, with the nucleus of the mixture.
    A row of temperature 0 is mixed at temperature 1; its caller takes the most probable token.

    Args:
        conditional_BV: logits with the image; not looked at where the ratio is 1.
        unconditional_BV: logits of the prompt alone; not looked at where the ratio is 0.
        ratio_B: hallucination ratio h in [0, 1].
        temperature_B: 0, or what the logits are divided by.
        top_p_B: nucleus in (0, 1].

    Returns:
        (B, V) float32.
    """
    scale_B1 = torch.where(temperature_B > 0, temperature_B, 1.0)[:, None]
    conditional_BV = torch.log_softmax(conditional_BV.float() / scale_B1, dim=-1)
    unconditional_BV = torch.log_softmax(unconditional_BV.float() / scale_B1, dim=-1)
    if mixing == "logit":
        mixed_BV = torch.lerp(conditional_BV, unconditional_BV, ratio_B[:, None])
        return nucleus(torch.log_softmax(mixed_BV, dim=-1), top_p_B)
    return mix(nucleus(conditional_BV, top_p_B), nucleus(unconditional_BV, top_p_B), ratio_B)


def mix(conditional_BV: torch.Tensor, unconditional_BV: torch.Tensor, ratio_B: torch.Tensor) -> torch.Tensor:
    """Eq. 3 on log-probabilities: log((1 - h) t_c + h t_u), (B, V)."""
    ratio_B1 = ratio_B[:, None]
    return torch.logaddexp(conditional_BV + torch.log1p(-ratio_B1), unconditional_BV + torch.log(ratio_B1))


def nucleus(log_probs_BV: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """Keep the smallest set of most probable tokens that holds ``top_p`` of the mass, renormalised, (B, V)."""
    if bool((top_p_B >= 1).all()):
        return log_probs_BV
    ordered_BV, order_BV = log_probs_BV.sort(dim=-1, descending=True)
    mass_before_BV = ordered_BV.exp().cumsum(dim=-1) - ordered_BV.exp()
    # The most probable token always stays: nothing stands before it.
    outside_BV = (mass_before_BV >= top_p_B[:, None]).scatter(1, order_BV, mass_before_BV >= top_p_B[:, None])
    return torch.log_softmax(log_probs_BV.masked_fill(outside_BV, -torch.inf), dim=-1)
