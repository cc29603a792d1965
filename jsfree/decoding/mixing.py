"""Combining two next-token distributions: Eq. 3, its geometric variant, and contrastive baselines.

Each mixing is a small class of pure arithmetic on batches. ``algorithm1.py`` computes the same mixtures from their
definitions, one caption at a time. The conditional path sees the image; the second path sees no image, or a noised one
(``noise_step``). In formulas t_c and t_u are their distributions, l_c and l_u their logits.

A logit of minus infinity is a probability of zero. Both paths give a probability of zero to tokens that must not be
drawn, and a model may do so for other tokens. Mixtures of probabilities need no special case. Where a mixture
multiplies or divides probabilities, zero stands for a number e that goes to zero, the same for all tokens and both
paths, and the mixture is the limit. So a product with zero is zero (but t_c^(1-h) t_u^h is t_c at h = 0). Where a
contrastive baseline divides by t_u = 0, the tokens with t_u = 0 < t_c take all the mass, in proportion to the weights
that they have from t_c alone.

With several views of the image (``views.py``) the conditional path is the mean of their distributions, each after
temperature and truncation.

Shape suffixes: B captions of a batch, R rows of a table of logits, V vocabulary, W views of a caption's image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from jsfree.config import Contrast, Decoding, MixingName

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-9, 1e30
"""Temperatures by which logits are divided. Below, only the most probable token of a distribution is kept, the first
one in a tie, as in greedy decoding. Above, distributions no longer change."""
NO_MASS = -1e20
"""Logits below count as minus infinity: models and masks also write the lowest finite number."""


@dataclass(frozen=True)
class BatchSettings:
    """Decoding settings of a batch: one number a caption, on the device of the logits."""

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
    """Whether any caption has a temperature other than 1."""
    truncated: bool
    """Whether any caption has a finite top_k or top_p."""

    @classmethod
    def of(
        cls, decodings: Sequence[Decoding], ratios: Sequence[float], steps: Sequence[int], device: torch.device
    ) -> BatchSettings:
        """Collect the settings of captions."""
        cold = [0 < decoding.temperature < MIN_TEMPERATURE for decoding in decodings]
        temperatures = [
            1.0 if is_cold else min(decoding.temperature or 1.0, MAX_TEMPERATURE)
            for decoding, is_cold in zip(decodings, cold, strict=True)
        ]
        top_ks = [
            1 if is_cold else decoding.top_k or math.inf for decoding, is_cold in zip(decodings, cold, strict=True)
        ]
        top_ps = [decoding.top_p if decoding.top_p < 1 else math.inf for decoding in decodings]
        columns = torch.tensor((ratios, temperatures, top_ks, top_ps, steps), dtype=torch.float32).to(device)
        ratio_B, temperature_B, top_k_B, top_p_B, step_B = columns
        return cls(
            ratio_B,
            temperature_B,
            top_k_B,
            top_p_B,
            step_B,
            tempered=any(temperature != 1 for temperature in temperatures),
            truncated=any(math.isfinite(limit) for limit in (*top_ks, *top_ps)),
        )

    def select(self, index: Sequence[int]) -> BatchSettings:
        """Settings of some of the captions."""
        columns = (self.ratio_B, self.temperature_B, self.top_k_B, self.top_p_B, self.step_B)
        ratio_B, temperature_B, top_k_B, top_p_B, step_B = torch.stack(columns)[:, list(index)]
        return BatchSettings(ratio_B, temperature_B, top_k_B, top_p_B, step_B, self.tempered, self.truncated)


def path_probs(logits_BV: torch.Tensor, settings: BatchSettings) -> torch.Tensor:
    """Probabilities of a single path after temperature, top-k and top-p, (B, V) float32."""
    logits_BV = logits_BV.float()
    if settings.tempered:  # relative to the largest logit, so that dividing by a small temperature does not overflow
        logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / settings.temperature_B[:, None]
    return _truncate(torch.softmax(logits_BV, -1), settings)


class Mixing:
    """A way to combine the two paths."""

    noise_step: int | None = None
    """How far the second path's image is noised; None if it sees no image."""
    contrastive = False
    """Whether both paths are always evaluated and the hallucination ratio is ignored."""
    allows_views = False
    """Whether the conditional path may see several views of the image."""

    def uses_conditional(self, ratio: float) -> bool:
        """Whether a caption of this hallucination ratio needs the conditional path."""
        return self.contrastive or ratio < 1

    def uses_second(self, ratio: float) -> bool:
        """Whether a caption of this hallucination ratio needs the second path."""
        return self.contrastive or ratio > 0

    def probs(self, conditional_BV: torch.Tensor, second_BV: torch.Tensor, settings: BatchSettings) -> torch.Tensor:
        """Distribution of the next token from the logits of both paths, (B, V) float32."""
        raise NotImplementedError

    def next_token_probs(
        self,
        logits_RV: torch.Tensor,
        view_rows: Sequence[Sequence[int]],
        second_rows: Sequence[int | None],
        settings: BatchSettings,
    ) -> torch.Tensor:
        """Distribution of the next token of captions that use one path or both, (B, V) float32.

        Args:
            logits_RV: logits of all paths; minus infinity for tokens that must not be drawn.
            view_rows: rows of each caption's conditional path, one a view, or the row of its only path.
            second_rows: row of each caption's second path; None if it uses one path.
            settings: decoding settings of the captions.
        """
        first_BV = _select_rows(logits_RV, [row for (row,) in view_rows])
        dual = [index for index, row in enumerate(second_rows) if row is not None]
        if not dual:
            return path_probs(first_BV, settings)
        second_BV = _select_rows(logits_RV, [row for row in second_rows if row is not None])
        if len(dual) == len(view_rows):
            return self.probs(first_BV, second_BV, settings)
        probs_BV = path_probs(first_BV, settings)
        probs_BV[dual] = self.probs(first_BV[dual], second_BV, settings.select(dual))
        return probs_BV


@dataclass(frozen=True)
class Probability(Mixing):
    """Eq. 3: t = (1 - h) t_c + h t_u; temperature and truncation apply to each path's distribution before mixing.

    With W views, t_c is the mean of t_c(view).
    """

    allows_views = True

    def next_token_probs(
        self,
        logits_RV: torch.Tensor,
        view_rows: Sequence[Sequence[int]],
        second_rows: Sequence[int | None],
        settings: BatchSettings,
    ) -> torch.Tensor:
        if all(len(rows) == 1 for rows in view_rows):
            return super().next_token_probs(logits_RV, view_rows, second_rows, settings)
        probs_BV = _mean_view_probs(logits_RV, view_rows, settings)
        dual = [index for index, row in enumerate(second_rows) if row is not None]
        if dual:
            second_BV = _select_rows(logits_RV, [row for row in second_rows if row is not None])
            selected = settings.select(dual)
            second_BV = path_probs(second_BV, selected)
            probs_BV[dual] = torch.lerp(probs_BV[dual], second_BV, selected.ratio_B[:, None])
        return probs_BV

    def probs(self, conditional_BV: torch.Tensor, second_BV: torch.Tensor, settings: BatchSettings) -> torch.Tensor:
        conditional_BV, second_BV = path_probs(conditional_BV, settings), path_probs(second_BV, settings)
        return torch.lerp(conditional_BV, second_BV, settings.ratio_B[:, None])


@dataclass(frozen=True)
class Geometric(Mixing):
    """Mixture of logits: t proportional to t_c^(1 - h) t_u^h, truncated after mixing."""

    def probs(self, conditional_BV: torch.Tensor, second_BV: torch.Tensor, settings: BatchSettings) -> torch.Tensor:
        def interpolate(conditional_BV: torch.Tensor, second_BV: torch.Tensor) -> torch.Tensor:
            return torch.lerp(conditional_BV, second_BV, settings.ratio_B[:, None])

        # Normalised first: where the paths exclude different tokens, both are weighted by the remaining mass.
        paths = (torch.log_softmax(logits_BV.float(), -1) for logits_BV in (conditional_BV, second_BV))
        return path_probs(_combine_logits(interpolate, *paths), settings)


@dataclass(frozen=True)
class Vcd(Mixing):
    """Visual contrastive decoding (arXiv 2311.16922): (1 + alpha) l_c - alpha l_u, where t_c >= beta max t_c."""

    alpha: float
    beta: float
    noise_step: int | None
    contrastive = True

    def probs(self, conditional_BV: torch.Tensor, second_BV: torch.Tensor, settings: BatchSettings) -> torch.Tensor:
        def contrast(conditional_BV: torch.Tensor, second_BV: torch.Tensor) -> torch.Tensor:
            return (1 + self.alpha) * conditional_BV - self.alpha * second_BV

        conditional_BV = conditional_BV.float()
        implausible_BV = conditional_BV < conditional_BV.amax(-1, keepdim=True) + math.log(self.beta)
        plausible_BV = conditional_BV.masked_fill(implausible_BV, -torch.inf)
        return path_probs(_combine_logits(contrast, plausible_BV, second_BV.float()), settings)


@dataclass(frozen=True)
class M3id(Mixing):
    """M3ID (arXiv 2403.14003): l_c + (1 - g) / g (l_c - l_u) with g = exp(-decay step), while max t_c < gate."""

    decay: float
    gate: float
    contrastive = True

    def probs(self, conditional_BV: torch.Tensor, second_BV: torch.Tensor, settings: BatchSettings) -> torch.Tensor:
        conditional_BV = torch.log_softmax(conditional_BV.float(), -1)
        second_BV = torch.log_softmax(second_BV.float(), -1)
        unsure_B1 = conditional_BV.amax(-1, keepdim=True) < math.log(self.gate)
        weight_B1 = torch.where(unsure_B1, torch.expm1(self.decay * settings.step_B)[:, None].clamp(max=1e4), 0.0)

        def correct(conditional_BV: torch.Tensor, second_BV: torch.Tensor) -> torch.Tensor:
            return conditional_BV + weight_B1 * (conditional_BV - second_BV)

        return path_probs(_combine_logits(correct, conditional_BV, second_BV), settings)


MIXINGS: dict[MixingName, Mixing] = {"probability": Probability(), "logit": Geometric()}
"""The values of ``generate.mixing``."""


def contrastive_mixing(settings: Contrast) -> Mixing:
    """The contrastive baseline with the configured settings."""
    if settings.kind == "m3id":
        return M3id(settings.decay, settings.gate)
    return Vcd(settings.alpha, settings.beta, settings.noise_step)


def add_diffusion_noise(pixels: torch.Tensor, step: int) -> torch.Tensor:
    """Preprocessed pixels after ``step`` of VCD's 1,000 diffusion steps.

    The noise is seeded with the pixels, so that an image always gets the same.
    """
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64)) * (0.005 - 1e-5) + 1e-5
    signal = torch.cumprod(1 - betas, 0)[step].item()
    pixels = pixels.float().cpu()
    seed = int.from_bytes(hashlib.blake2b(pixels.numpy().tobytes(), digest_size=8).digest(), "little") >> 1
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return math.sqrt(signal) * pixels + math.sqrt(1 - signal) * noise


def token_logps(logits_RV: torch.Tensor, view_rows: Sequence[Sequence[int]], token_B: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of tokens at temperature 1 and without truncation, (B,) float32.

    With several views: the logarithm of the mean of the views' probabilities.

    Args:
        logits_RV: logits of all paths; minus infinity for tokens that must not be drawn.
        view_rows: rows of each caption's conditional path, one a view.
        token_B: a token of each caption; any number for one without a token.
    """
    logp_B = torch.empty(len(view_rows), device=logits_RV.device)
    for views, captions in _captions_by_views(view_rows).items():
        logits_XV = _select_rows(logits_RV, [row for index in captions for row in view_rows[index]]).float()
        token_X1 = token_B[captions].clamp(min=0).repeat_interleave(views)[:, None]
        logp_X = logits_XV.gather(1, token_X1)[:, 0] - logits_XV.logsumexp(-1)
        logp_B[captions] = logp_X.view(-1, views).logsumexp(1) - math.log(views)
    return logp_B


def token_penalties(
    tokens: Sequence[int], presence: float, frequency: float, vocabulary: int, device: torch.device
) -> torch.Tensor:
    """What is subtracted from the logits of a caption's next token, (V,) float32.

    Args:
        tokens: the caption so far.
        presence: penalty of every token in it.
        frequency: further penalty of a token, for each time that it is in it.
        vocabulary: V.
        device: that of the logits.
    """
    count_V = torch.bincount(torch.tensor(tokens, dtype=torch.int64), minlength=vocabulary)
    return (presence * (count_V > 0) + frequency * count_V).to(device, torch.float32)


def _mean_view_probs(
    logits_RV: torch.Tensor, view_rows: Sequence[Sequence[int]], settings: BatchSettings
) -> torch.Tensor:
    """The conditional path's distribution: the mean of its views' distributions, (B, V) float32."""
    groups = _captions_by_views(view_rows)
    means = []
    for views, captions in groups.items():
        logits_XV = _select_rows(logits_RV, [row for index in captions for row in view_rows[index]])
        probs_XV = path_probs(logits_XV, settings.select([index for index in captions for _ in range(views)]))
        means.append(probs_XV.view(len(captions), views, -1).mean(1))
    if len(means) == 1:
        return means[0]
    order = torch.tensor([index for captions in groups.values() for index in captions], device=logits_RV.device)
    return torch.empty_like(torch.cat(means)).index_copy_(0, order, torch.cat(means))


def _captions_by_views(view_rows: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """Indices of captions by their number of views."""
    groups: dict[int, list[int]] = {}
    for index, rows in enumerate(view_rows):
        groups.setdefault(len(rows), []).append(index)
    return groups


def _select_rows(table_RV: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Rows of a table; a view, without a copy, if they are consecutive."""
    first, last = rows[0], rows[0] + len(rows)
    return table_RV[first:last] if list(rows) == list(range(first, last)) else table_RV[rows]


def _combine_logits(
    combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], first_BV: torch.Tensor, second_BV: torch.Tensor
) -> torch.Tensor:
    """Combine the logits of two paths, taking the limit where a path gives a token no mass, (B, V).

    Args:
        combine: a function linear in both arguments. With log e for the logit of a probability e that goes to zero, it
            gives ``finite + order * log e``; in the limit only the tokens of the lowest order in a row have mass.
        first_BV: logits of the first path.
        second_BV: logits of the second path.
    """
    empty_first_BV, empty_second_BV = first_BV < NO_MASS, second_BV < NO_MASS
    order_BV = combine(empty_first_BV.float(), empty_second_BV.float())
    finite_BV = combine(first_BV.masked_fill(empty_first_BV, 0.0), second_BV.masked_fill(empty_second_BV, 0.0))
    vanishing_BV = (order_BV > order_BV.amin(-1, keepdim=True)) | (empty_first_BV & empty_second_BV)
    return finite_BV.masked_fill(vanishing_BV, -torch.inf)


def _truncate(probs_BV: torch.Tensor, settings: BatchSettings) -> torch.Tensor:
    """Keep the ``top_k`` most probable tokens, then the smallest set of them that holds ``top_p``; renormalise."""
    if not settings.truncated:
        return probs_BV
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    rank_1V = torch.arange(probs_BV.shape[1], device=probs_BV.device)[None]
    sorted_BV = sorted_BV * (rank_1V < settings.top_k_B[:, None])
    sorted_BV = sorted_BV / sorted_BV.sum(-1, keepdim=True)
    preceding_BV = sorted_BV.cumsum(-1) - sorted_BV
    # The most probable token always stays: a top_p may be too small for float32.
    sorted_BV = sorted_BV * ((preceding_BV < settings.top_p_B[:, None]) | (rank_1V == 0))
    kept_BV = torch.zeros_like(probs_BV).scatter(1, order_BV, sorted_BV)
    truncated_B1 = (settings.top_k_B.isfinite() | settings.top_p_B.isfinite())[:, None]
    return torch.where(truncated_B1, kept_BV / kept_BV.sum(-1, keepdim=True), probs_BV)
