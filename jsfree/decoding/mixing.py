"""How two next-token distributions become one: Eq. 3, its relatives, and the contrastive baselines.

Each is a small class of pure arithmetic on batches; ``algorithm1.py`` computes the same mixtures by their definitions,
one caption at a time. The conditional logits l_c see the image; the second path sees no image, or a noised one
(``noise_step``).

A logit of minus infinity is a probability of zero. Tokens that may not be drawn have a probability of zero in both
paths, and a model may give others one. Probabilities are mixed as they are. Where a mixture multiplies or divides
probabilities, zero stands for a number that goes to zero, the same for all tokens and both paths, and the mixture is
the limit: a product with zero is zero (but p_c^(1-h) p_u^h is p_c at h = 0), and where a contrastive baseline divides
by a zero p_u, the tokens with p_u = 0 < p_c take all the mass, in proportion to what their p_c gives alone.

Shape suffixes: B rows, R rows of a table of logits, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from jsfree.config import Contrast, Decoding, MixingName

COLDEST, HOTTEST = 1e-9, 1e30
"""Temperatures that logits are divided by. Below, only the most probable token of a distribution is kept, the first of
those that tie, as in greedy decoding; above, no distribution changes any more."""
NO_MASS = -1e20
"""Logits below are taken for minus infinity: models and masks also write the lowest finite number."""


@dataclass(frozen=True)
class Rows:
    """How the rows of a batch are decoded: one number for each row, on the device of the logits."""

    ratio_B: torch.Tensor
    """Hallucination ratio h in [0, 1]."""
    temperature_B: torch.Tensor
    """Divides the logits; 1 where decoding is greedy."""
    top_k_B: torch.Tensor
    """Tokens kept, at least 1; infinity keeps all."""
    top_p_B: torch.Tensor
    """Nucleus in [0, 1), where 0 keeps one token; infinity keeps all."""
    step_B: torch.Tensor
    """Index of the token to be drawn, from 0."""
    tempered: bool
    """Whether any row has a temperature other than 1."""
    truncated: bool
    """Whether any row has a finite top_k or top_p."""

    @classmethod
    def of(
        cls, decodings: Sequence[Decoding], ratios: Sequence[float], steps: Sequence[int], device: torch.device
    ) -> Rows:
        """The rows of requests."""
        cold = [0 < each.temperature < COLDEST for each in decodings]
        temperatures = [
            1.0 if is_cold else min(each.temperature or 1.0, HOTTEST)
            for each, is_cold in zip(decodings, cold, strict=True)
        ]
        top_ks = [1 if is_cold else each.top_k or math.inf for each, is_cold in zip(decodings, cold, strict=True)]
        top_ps = [each.top_p if each.top_p < 1 else math.inf for each in decodings]
        columns = torch.tensor((ratios, temperatures, top_ks, top_ps, steps), dtype=torch.float32).to(device)
        ratio, temperature, top_k, top_p, step = columns
        tempered = any(each != 1 for each in temperatures)
        truncated = any(math.isfinite(limit) for limit in (*top_ks, *top_ps))
        return cls(ratio, temperature, top_k, top_p, step, tempered, truncated)

    def select(self, index: Sequence[int]) -> Rows:
        """Some of the rows."""
        columns = (self.ratio_B, self.temperature_B, self.top_k_B, self.top_p_B, self.step_B)
        ratio, temperature, top_k, top_p, step = torch.stack(columns)[:, list(index)]
        return Rows(ratio, temperature, top_k, top_p, step, self.tempered, self.truncated)


def single(logits_BV: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Probabilities of one path alone, (B, V) float32."""
    logits_BV = logits_BV.float()
    if rows.tempered:  # relative to the largest logit: dividing by a small temperature must not overflow
        logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / rows.temperature_B[:, None]
    return _truncated(torch.softmax(logits_BV, -1), rows)


class Mixing:
    """A way to combine the two paths.

    ``noise_step``: None where the second path sees no image, else how far its image is noised.
    ``contrastive``: both paths are always needed, and the ratio is not looked at.
    """

    noise_step: int | None = None
    contrastive = False

    def uses_first(self, ratio: float) -> bool:
        """Whether a caption of this ratio needs the conditional path."""
        return self.contrastive or ratio < 1

    def uses_second(self, ratio: float) -> bool:
        """Whether a caption of this ratio needs the second path."""
        return self.contrastive or ratio > 0

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
            rows: how the captions are decoded.
            suppressed: tokens that must not be drawn; both paths give them a probability of zero.
        """
        if suppressed:
            logits_RV = logits_RV.index_fill(1, torch.tensor(suppressed, device=logits_RV.device), -torch.inf)
        first_BV = _picked(logits_RV, firsts)
        both = [index for index, second in enumerate(seconds) if second is not None]
        if not both:
            return single(first_BV, rows)
        second_BV = _picked(logits_RV, [second for second in seconds if second is not None])
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
        def mixed(conditional_BV: torch.Tensor, second_BV: torch.Tensor) -> torch.Tensor:
            return torch.lerp(conditional_BV, second_BV, rows.ratio_B[:, None])

        # Log-probabilities: where the two paths rule out different tokens, both are weighed by their mass.
        paths = (torch.log_softmax(logits_BV.float(), -1) for logits_BV in (conditional_BV, second_BV))
        return single(_combined(mixed, *paths), rows)


@dataclass(frozen=True)
class Vcd(Mixing):
    """Visual contrastive decoding (arXiv 2311.16922): (1 + alpha) l_c - alpha l_d, where p_c >= beta max p_c."""

    alpha: float
    beta: float
    noise_step: int | None
    contrastive = True

    def probs(self, conditional_BV: torch.Tensor, second_BV: torch.Tensor, rows: Rows) -> torch.Tensor:
        def contrasted(conditional_BV: torch.Tensor, second_BV: torch.Tensor) -> torch.Tensor:
            return (1 + self.alpha) * conditional_BV - self.alpha * second_BV

        conditional_BV = conditional_BV.float()
        implausible_BV = conditional_BV < conditional_BV.amax(-1, keepdim=True) + math.log(self.beta)
        plausible_BV = conditional_BV.masked_fill(implausible_BV, -torch.inf)
        return single(_combined(contrasted, plausible_BV, second_BV.float()), rows)


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
        weight_B1 = torch.where(unsure_B1, torch.expm1(self.decay * rows.step_B)[:, None].clamp(max=1e4), 0.0)

        def corrected(conditional_BV: torch.Tensor, second_BV: torch.Tensor) -> torch.Tensor:
            return conditional_BV + weight_B1 * (conditional_BV - second_BV)

        return single(_combined(corrected, conditional_BV, second_BV), rows)


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


def _combined(
    combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], first_BV: torch.Tensor, second_BV: torch.Tensor
) -> torch.Tensor:
    """Logits that ``combine`` makes of both paths', as the limit where a path gives a token no mass.

    Args:
        combine: linear in both. With log e for the log of a probability that goes to zero, it makes
            ``finite + order * log e``: only the tokens of the lowest order in a row keep mass in the limit.
        first_BV: logits of the first path.
        second_BV: logits of the second path.
    """
    empty_first_BV, empty_second_BV = first_BV < NO_MASS, second_BV < NO_MASS
    order_BV = combine(empty_first_BV.float(), empty_second_BV.float())
    finite_BV = combine(first_BV.masked_fill(empty_first_BV, 0.0), second_BV.masked_fill(empty_second_BV, 0.0))
    vanishing_BV = (order_BV > order_BV.amin(-1, keepdim=True)) | (empty_first_BV & empty_second_BV)
    return finite_BV.masked_fill(vanishing_BV, -torch.inf)


def _truncated(probs_BV: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Keep the ``top_k`` most probable tokens, of them the smallest set that holds ``top_p``; renormalised."""
    if not rows.truncated:
        return probs_BV
    ordered_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    rank_1V = torch.arange(probs_BV.shape[1], device=probs_BV.device)[None]
    ordered_BV = ordered_BV * (rank_1V < rows.top_k_B[:, None])
    ordered_BV = ordered_BV / ordered_BV.sum(-1, keepdim=True)
    before_BV = ordered_BV.cumsum(-1) - ordered_BV
    # The most probable token always stays: a top_p may be too small for float32.
    ordered_BV = ordered_BV * ((before_BV < rows.top_p_B[:, None]) | (rank_1V == 0))
    kept_BV = torch.zeros_like(probs_BV).scatter(1, order_BV, ordered_BV)
    cut_B1 = (rows.top_k_B.isfinite() | rows.top_p_B.isfinite())[:, None]
    return torch.where(cut_B1, kept_BV / kept_BV.sum(-1, keepdim=True), probs_BV)
