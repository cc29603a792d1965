"""How two next-token distributions become one: Eq. 3, its relatives, and the contrastive baselines.

Each is a small class of pure arithmetic, which the batched engine and the literal oracle share. The conditional
logits l_c see the image; the second path sees no image, or a noised one (``noise_step``).

Shape suffixes: B rows, R rows of a table of logits, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jsfree.config import Contrast, Decoding, MixingName


@dataclass(frozen=True)
class Rows:
    """What the rows of a batch are decoded with; one number a row, on the device of the logits."""

    ratio_B: torch.Tensor
    """Hallucination ratio h in [0, 1]."""
    temperature_B: torch.Tensor
    """What logits are divided by; 1 where the decoding is greedy."""
    top_k_B: torch.Tensor
    """Tokens kept, at least 1; infinity keeps all."""
    top_p_B: torch.Tensor
    """Nucleus in (0, 1]."""
    step_B: torch.Tensor
    """Index of the token to be drawn, from 0."""
    truncated: bool
    """Whether any row has a top_k or top_p that cuts."""

    @classmethod
    def of(
        cls, decodings: Sequence[Decoding], ratios: Sequence[float], steps: Sequence[int], device: torch.device
    ) -> Rows:
        """The rows of requests."""
        columns = (
            ratios,
            [each.temperature or 1.0 for each in decodings],
            [each.top_k or math.inf for each in decodings],
            [each.top_p for each in decodings],
            steps,
        )
        truncated = any(each.top_k or each.top_p < 1 for each in decodings)
        ratio, temperature, top_k, top_p, step = torch.tensor(columns, dtype=torch.float32).to(device)
        return cls(ratio, temperature, top_k, top_p, step, truncated)

    def without(self, suppressed: Sequence[int], logits_BV: torch.Tensor) -> torch.Tensor:
        """Logits without tokens that must not be drawn, where a cut of few tokens might keep no other."""
        if not (self.truncated and suppressed):
            return logits_BV
        return logits_BV.index_fill(1, torch.tensor(suppressed, device=logits_BV.device), -torch.inf)

    def select(self, index: Sequence[int]) -> Rows:
        """Some of the rows."""
        columns = (self.ratio_B, self.temperature_B, self.top_k_B, self.top_p_B, self.step_B)
        ratio, temperature, top_k, top_p, step = torch.stack(columns)[:, list(index)]
        return Rows(ratio, temperature, top_k, top_p, step, self.truncated)


def single(logits_BV: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Probabilities of one path alone, (B, V) float32."""
    return _truncated(torch.softmax(logits_BV.float() / rows.temperature_B[:, None], -1), rows)


class Mixing:
    """A way to combine the two paths.

    ``noise_step``: None where the second path sees no image, else how far its image is noised.
    ``contrastive``: both paths are always needed, and the ratio is not looked at.
    """

    noise_step: int | None = None
    contrastive = False

    def probs(self, conditional_BV: torch.Tensor, second_BV: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Probabilities that the next token is drawn from, (B, V) float32, of the two paths' logits (B, V)."""
        raise NotImplementedError

    def of_table(
        self,
        logits_RV: torch.Tensor,
        firsts: Sequence[int],
        seconds: Sequence[int | None],
        rows: Rows,
        suppressed: Sequence[int] = (),
    ) -> torch.Tensor:
        """Probabilities as ``probs``, of paths whose logits are rows of a table.

        Args:
            logits_RV: logits of all paths.
            firsts: the row of each caption's first path, or of its only one.
            seconds: the row of its second path; None where there is one path.
            rows: what the captions are decoded with.
            suppressed: tokens that must not be drawn.
        """
        first_BV = rows.without(suppressed, _picked(logits_RV, firsts))
        both = [index for index, second in enumerate(seconds) if second is not None]
        if not both:
            return single(first_BV, rows)
        second_BV = rows.without(suppressed, _picked(logits_RV, [second for second in seconds if second is not None]))
        if len(both) == len(firsts):
            return self.probs(first_BV, second_BV, rows)
        probs_BV = single(first_BV, rows)
        probs_BV[both] = self.probs(first_BV[both], second_BV, rows.select(both))
        return probs_BV


@dataclass(frozen=True)
class Probability(Mixing):
    """Eq. 3: t = (1 - h) t_c + h t_u, temperature and truncation applied to each path's distribution before."""

    def probs(self, conditional_BV: torch.Tensor, second_BV: torch.Tensor, rows: Rows) -> torch.Tensor:
        return torch.lerp(single(conditional_BV, rows), single(second_BV, rows), rows.ratio_B[:, None])


@dataclass(frozen=True)
class Geometric(Mixing):
    """Mixture of logits: t proportional to t_c^(1 - h) t_u^h, truncated afterwards."""

    def probs(self, conditional_BV: torch.Tensor, second_BV: torch.Tensor, rows: Rows) -> torch.Tensor:
        return single(torch.lerp(conditional_BV.float(), second_BV.float(), rows.ratio_B[:, None]), rows)


@dataclass(frozen=True)
class Vcd(Mixing):
    """Visual contrastive decoding (arXiv 2311.16922): (1 + alpha) l_c - alpha l_d, where p_c >= beta max p_c."""

    alpha: float
    beta: float
    noise_step: int | None
    contrastive = True

    def probs(self, conditional_BV: torch.Tensor, second_BV: torch.Tensor, rows: Rows) -> torch.Tensor:
        logits_BV = conditional_BV.float()
        contrasted_BV = (1 + self.alpha) * logits_BV - self.alpha * second_BV.float()
        implausible_BV = logits_BV < logits_BV.amax(-1, keepdim=True) + math.log(self.beta)
        return single(contrasted_BV.masked_fill(implausible_BV, -torch.inf), rows)


@dataclass(frozen=True)
class M3id(Mixing):
    """M3ID (arXiv 2403.14003): l_c + (1 - g) / g (l_c - l_u), g = exp(-decay t), while max p_c < gate."""

    decay: float
    gate: float
    contrastive = True

    def probs(self, conditional_BV: torch.Tensor, second_BV: torch.Tensor, rows: Rows) -> torch.Tensor:
        conditional_BV = torch.log_softmax(conditional_BV.float(), -1)
        second_BV = torch.log_softmax(second_BV.float(), -1)
        unsure_B1 = conditional_BV.amax(-1, keepdim=True) < math.log(self.gate)
        weight_B1 = torch.expm1(self.decay * rows.step_B)[:, None]
        correction_BV = torch.where(unsure_B1, weight_B1.clamp(max=1e4), 0.0) * (conditional_BV - second_BV)
        return single(conditional_BV + correction_BV, rows)


NAMED: dict[MixingName, Mixing] = {"probability": Probability(), "logit": Geometric()}


def contrast_of(settings: Contrast) -> Mixing:
    """The contrastive baseline that a configuration asks for."""
    if settings.kind == "m3id":
        return M3id(settings.decay, settings.gate)
    return Vcd(settings.alpha, settings.beta, settings.noise_step)


def noised(pixels: torch.Tensor, step: int) -> torch.Tensor:
    """Preprocessed pixels after ``step`` of VCD's 1,000 diffusion steps.

    An image has one draw of noise, whoever asks: it is seeded by the pixels.
    """
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64)) * (0.005 - 1e-5) + 1e-5
    kept = torch.cumprod(1 - betas, 0)[step].item()
    pixels = pixels.float().cpu()
    seed = int.from_bytes(hashlib.blake2b(pixels.numpy().tobytes(), digest_size=8).digest(), "little") >> 1
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return math.sqrt(kept) * pixels + math.sqrt(1 - kept) * noise


def _picked(table_RV: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Rows of a table; without a copy where they follow each other."""
    first = rows[0]
    return (
        table_RV[first : first + len(rows)] if list(rows) == list(range(first, first + len(rows))) else table_RV[rows]
    )


def _truncated(probs_BV: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Keep the ``top_k`` most probable tokens, of them the smallest set that holds ``top_p``; renormalised."""
    if not rows.truncated:
        return probs_BV
    ordered_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    rank_1V = torch.arange(probs_BV.shape[1], device=probs_BV.device)[None]
    ordered_BV = ordered_BV * (rank_1V < rows.top_k_B[:, None])
    ordered_BV = ordered_BV / ordered_BV.sum(-1, keepdim=True)
    # The most probable token always stays: nothing stands before it.
    before_BV = ordered_BV.cumsum(-1) - ordered_BV
    ordered_BV = ordered_BV * (before_BV < rows.top_p_B[:, None])
    kept_BV = torch.zeros_like(probs_BV).scatter(1, order_BV, ordered_BV)
    cut_B1 = (rows.top_k_B.isfinite() | (rows.top_p_B < 1))[:, None]
    return torch.where(cut_B1, kept_BV / kept_BV.sum(-1, keepdim=True), probs_BV)
