"""The paper's Algorithm 1, lines 3 to 7, word for word: one caption, no cache, two full forwards a token.

Slow on purpose: it is the oracle that the batched engine is tested against. It takes the settings of a mixing from
``mixing.py``, but computes the mixture itself, in float64, so that a fault there cannot agree with itself.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

import math

import torch

from jsfree.config import Decoding
from jsfree.decoding import sampling
from jsfree.decoding.mixing import Geometric, M3id, Mixing, Probability, Vcd, noised
from jsfree.decoding.requests import Caption, Request, finished
from jsfree.errors import DecodingError
from jsfree.models.loading import Captioner


def decode(captioner: Captioner, request: Request, mixed: Mixing | None = None) -> Caption:
    """Decode one caption.

    Raises:
        DecodingError: the model gives no token that may be drawn any probability.
    """
    noise = sampling.NoiseStream(request.noise, captioner.vocabulary)
    tokens: list[int] = []
    while True:
        probs_1V = next_token_probs(captioner, request, tokens, mixed)
        noise_1N = torch.from_numpy(noise.token())[None].to(captioner.device)
        token = int(sampling.draw(probs_1V, noise_1N, [request.decoding.temperature == 0]))
        if token == sampling.NO_TOKEN:
            raise DecodingError(f"request {request.request_id!r}: no token has any probability")
        tokens.append(token)
        caption = finished(captioner, request, tokens)
        if caption is not None:
            return caption


@torch.inference_mode()
def next_token_probs(
    captioner: Captioner, request: Request, tokens: list[int], mixed: Mixing | None = None
) -> torch.Tensor:
    """What the token after ``tokens`` is drawn from, (1, vocabulary) float64."""
    mixed = mixed or Probability()
    pixels = captioner.batch([request.pixels])
    with_image = [*captioner.prompt_ids(request.prompt, image=True), *tokens]
    without_image = [*captioner.prompt_ids(request.prompt, image=False), *tokens]
    conditional_V = _last_logits(captioner, with_image, pixels)
    if mixed.noise_step is None:
        second_V = _last_logits(captioner, without_image, None)
    else:
        second_V = _last_logits(captioner, with_image, captioner.batch([noised(request.pixels, mixed.noise_step)]))
    for logits_V in (conditional_V, second_V):
        logits_V[list(captioner.suppressed_ids)] = -torch.inf
    return mixture(conditional_V, second_V, request.ratio, request.decoding, len(tokens), mixed)[None]


def _last_logits(captioner: Captioner, token_ids: list[int], pixels: torch.Tensor | None) -> torch.Tensor:
    """Logits of the token after ``token_ids``, (V,) float64."""
    ids = torch.tensor([token_ids], device=captioner.device)
    logits: torch.Tensor = captioner.model(input_ids=ids, pixel_values=pixels, use_cache=False).logits
    return logits[0, -1].double()


def mixture(
    conditional_V: torch.Tensor, second_V: torch.Tensor, ratio: float, decoding: Decoding, step: int, mixed: Mixing
) -> torch.Tensor:
    """The mixture of two paths by its definition, (V,) float64; logits of minus infinity are probabilities of zero."""
    log_c, log_u = (_log_probs(logits_V.double()) for logits_V in (conditional_V, second_V))
    if isinstance(mixed, Geometric):
        return _distribution(_product(log_c, 1 - ratio, log_u, ratio), decoding)
    if isinstance(mixed, Vcd):
        plausible_V = log_c.exp() >= mixed.beta * log_c.exp().max()
        return _distribution(_contrast(torch.where(plausible_V, log_c, -torch.inf), log_u, mixed.alpha), decoding)
    if isinstance(mixed, M3id):
        weight = min(math.expm1(min(mixed.decay * step, 100.0)), 1e4) if log_c.exp().max() < mixed.gate else 0.0
        return _distribution(_contrast(log_c, log_u, weight), decoding)
    return (1 - ratio) * _distribution(log_c, decoding) + ratio * _distribution(log_u, decoding)


def _log_probs(logits_V: torch.Tensor) -> torch.Tensor:
    """Log-probabilities; the lowest finite numbers, which masks write, are minus infinity."""
    return torch.log_softmax(logits_V.masked_fill(logits_V < -1e20, -torch.inf), -1)


def _product(log_c: torch.Tensor, exponent_c: float, log_u: torch.Tensor, exponent_u: float) -> torch.Tensor:
    """log (p_c^exponent_c p_u^exponent_u), up to a constant, as the limit for a small number in place of zero.

    The product goes to zero with that number to the power ``order``: tokens of the lowest order keep all the mass.
    """
    zero_c, zero_u = log_c == -torch.inf, log_u == -torch.inf
    order_V = exponent_c * zero_c.double() + exponent_u * zero_u.double()
    finite_V = exponent_c * log_c.masked_fill(zero_c, 0.0) + exponent_u * log_u.masked_fill(zero_u, 0.0)
    return finite_V.masked_fill(order_V > order_V.min(), -torch.inf)


def _contrast(log_c: torch.Tensor, log_u: torch.Tensor, weight: float) -> torch.Tensor:
    """log (p_c (p_c / p_u)^weight), up to a constant; where p_u is 0, its limit."""
    if weight == 0:
        return log_c
    certain_V = log_c > -torch.inf
    infinite_V = certain_V & (log_u == -torch.inf)
    if infinite_V.any():
        return torch.where(infinite_V, (1 + weight) * log_c, -torch.inf)
    return torch.where(certain_V, log_c + weight * (log_c - log_u), -torch.inf)


def _distribution(log_weights_V: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Probabilities after temperature, ``top_k`` and ``top_p``; a temperature below 1e-9 keeps one token."""
    cold = 0 < decoding.temperature < 1e-9
    heat = 1.0 if cold else decoding.temperature or 1.0
    probs_V = torch.softmax((log_weights_V - log_weights_V.max()) / heat, -1)
    order = torch.sort(probs_V, descending=True, stable=True).indices.tolist()
    order = order[: 1 if cold else decoding.top_k or None]
    mass, before = probs_V[order].sum().item(), 0.0
    kept: set[int] = set()
    for token in order:
        if kept and decoding.top_p < 1 and before >= decoding.top_p * mass:
            break
        kept.add(token)
        before += probs_V[token].item()
    probs_V[[token for token in range(len(probs_V)) if token not in kept]] = 0.0
    return probs_V / probs_V.sum()
