"""The paper's Algorithm 1, lines 3 to 7, taken literally: one caption, no cache, two full forward passes a token.

Slow on purpose: this is the oracle that the batched engine is tested against. It reads the parameters of a ``Mixing``,
but computes the mixture itself, in float64, so that an error in ``mixing.py`` cannot go unnoticed.

Shape suffixes: V vocabulary, W views of the image.
"""

from __future__ import annotations

import math
from functools import partial

import torch

from jsfree.config import Decoding
from jsfree.decoding import sampling
from jsfree.decoding.mixing import Geometric, M3id, Mixing, Probability, Vcd, add_diffusion_noise
from jsfree.decoding.requests import Caption, Request, TokenLogp, completed_caption
from jsfree.decoding.views import translations
from jsfree.errors import DecodingError
from jsfree.models.families.base import ImageInputs
from jsfree.models.loading import Captioner


def decode(captioner: Captioner, request: Request, mixing: Mixing | None = None) -> Caption:
    """Decode one caption.

    Args:
        captioner: the model.
        request: the caption to decode.
        mixing: how the paths are combined; Eq. 3 if None.

    Raises:
        DecodingError: no token that may be drawn has any probability.
    """
    mixing = mixing or Probability()
    noise = sampling.NoiseStream(request.noise_key, captioner.vocabulary)
    tokens: list[int] = []
    logps: list[float] = []
    unconditional_logps: list[float] = []
    token_logps: list[TokenLogp] = []
    while True:
        conditional_WV, second_V = _path_logits(captioner, request, tokens, mixing)
        penalty_V = _penalties(request, tokens, captioner.vocabulary).to(captioner.device)
        paths = conditional_WV - penalty_V, second_V - penalty_V
        probs_V = mixture(*paths, request.ratio, request.decoding, len(tokens), mixing)
        noise_1N = torch.from_numpy(noise.next_token())[None].to(captioner.device)
        token = int(sampling.sample_tokens(probs_V[None], noise_1N, [request.decoding.temperature == 0]))
        if len(tokens) < len(request.prefix):
            token = request.prefix[len(tokens)]
        if token == sampling.NO_TOKEN:
            raise DecodingError(f"request {request.request_id!r}: no token has any probability")
        tokens.append(token)
        logps.append(math.log(_log_probs(conditional_WV)[:, token].exp().mean().item()))
        if mixing.uses_second(request.ratio) and mixing.noise_step is None:
            unconditional_logps.append(float(_log_probs(second_V)[token]))
        probs_V = mixture(conditional_WV, second_V, request.ratio, Decoding(), len(tokens) - 1, mixing)
        token_logps.append(_token_logp(token, probs_V.tolist(), request.alternatives or 0))
        caption = completed_caption(captioner, request, tokens, logps, unconditional_logps, token_logps)
        if caption is not None:
            return caption


def next_token_probs(
    captioner: Captioner, request: Request, tokens: list[int], mixing: Mixing | None = None
) -> torch.Tensor:
    """Distribution of the token after ``tokens``, (V,) float64."""
    mixing = mixing or Probability()
    conditional_WV, second_V = _path_logits(captioner, request, tokens, mixing)
    penalty_V = _penalties(request, tokens, captioner.vocabulary).to(captioner.device)
    paths = conditional_WV - penalty_V, second_V - penalty_V
    return mixture(*paths, request.ratio, request.decoding, len(tokens), mixing)


def _penalties(request: Request, tokens: list[int], vocabulary: int) -> torch.Tensor:
    """What a request's penalties subtract from the logits after ``tokens``, (V,) float64."""
    penalty_V = torch.zeros(vocabulary, dtype=torch.float64)
    for token in set(tokens):
        penalty_V[token] = request.presence_penalty + request.frequency_penalty * tokens.count(token)
    return penalty_V


def _token_logp(token: int, probs_V: list[float], count: int) -> TokenLogp:
    """The log-probability of a token, and the ``count`` most probable tokens."""
    logps = [math.log(prob) if prob else -math.inf for prob in probs_V]
    order = sorted(range(len(logps)), key=lambda other: -logps[other])
    return TokenLogp(token, logps[token], tuple((other, logps[other]) for other in order[:count]))


@torch.inference_mode()
def _path_logits(
    captioner: Captioner, request: Request, tokens: list[int], mixing: Mixing
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the token after ``tokens``, float64: of the conditional path (W, V), and of the second path (V,)."""
    assert request.image is not None
    with_image = [*captioner.prompt_ids(request.prompt, request.image), *tokens]
    without_image = [*captioner.prompt_ids(request.prompt, None), *tokens]
    views = [
        captioner.map_pixels(request.image, partial(_translated, x=x, y=y))
        for x, y in translations(request.decoding.views)
    ]
    conditional_WV = torch.stack([_last_logits(captioner, with_image, view) for view in views])
    if mixing.noise_step is None:
        second_V = _last_logits(captioner, without_image, None)
    else:
        noised = captioner.map_pixels(request.image, partial(add_diffusion_noise, step=mixing.noise_step))
        second_V = _last_logits(captioner, with_image, noised)
    for logits in (conditional_WV, second_V):
        logits[..., list(captioner.suppressed_ids)] = -torch.inf
    return conditional_WV, second_V


def _translated(pixels: torch.Tensor, x: int, y: int) -> torch.Tensor:
    """An image (3, height, width) moved by ``x`` to the right and ``y`` down; pixels at the edge are repeated."""
    _, height, width = pixels.shape
    rows = [min(max(row - y, 0), height - 1) for row in range(height)]
    columns = [min(max(column - x, 0), width - 1) for column in range(width)]
    return pixels[:, rows][:, :, columns]


def _last_logits(captioner: Captioner, token_ids: list[int], image: ImageInputs | None) -> torch.Tensor:
    """Logits of the token after ``token_ids``, (V,) float64; the model finds the positions of all tokens itself."""
    ids = torch.tensor([token_ids], device=captioner.device)
    arguments = {} if image is None else captioner.forward_arguments(token_ids, [image])
    logits: torch.Tensor = captioner.model(input_ids=ids, use_cache=False, **arguments).logits
    return logits[0, -1].double()


def mixture(
    conditional_WV: torch.Tensor, second_V: torch.Tensor, ratio: float, decoding: Decoding, step: int, mixing: Mixing
) -> torch.Tensor:
    """The mixture of two paths by its definition, (V,) float64.

    Args:
        conditional_WV: logits of the conditional path, by view; minus infinity is a probability of zero.
        second_V: logits of the second path.
        ratio: hallucination ratio h.
        decoding: temperature and truncation.
        step: index of the token, from 0.
        mixing: how the paths are combined.
    """
    log_c_WV, log_u = (_log_probs(logits.double()) for logits in (conditional_WV, second_V))
    if isinstance(mixing, Probability):
        conditional_V = sum(_distribution(log_c, decoding) for log_c in log_c_WV) / len(log_c_WV)
        return (1 - ratio) * conditional_V + ratio * _distribution(log_u, decoding)
    (log_c,) = log_c_WV
    if isinstance(mixing, Geometric):
        return _distribution(_product(log_c, 1 - ratio, log_u, ratio), decoding)
    if isinstance(mixing, Vcd):
        plausible_V = log_c.exp() >= mixing.beta * log_c.exp().max()
        return _distribution(_contrast(torch.where(plausible_V, log_c, -torch.inf), log_u, mixing.alpha), decoding)
    if isinstance(mixing, M3id):
        weight = min(math.expm1(min(mixing.decay * step, 100.0)), 1e4) if log_c.exp().max() < mixing.gate else 0.0
        return _distribution(_contrast(log_c, log_u, weight), decoding)
    raise TypeError(f"unknown mixing {mixing!r}")


def _log_probs(logits_V: torch.Tensor) -> torch.Tensor:
    """Log-probabilities; the lowest finite numbers, which masks write, count as minus infinity."""
    return torch.log_softmax(logits_V.masked_fill(logits_V < -1e20, -torch.inf), -1)


def _product(log_c: torch.Tensor, exponent_c: float, log_u: torch.Tensor, exponent_u: float) -> torch.Tensor:
    """log (p_c^exponent_c p_u^exponent_u) up to a constant, in the limit of zero probabilities.

    With e in place of zero, which goes to zero, the product goes to zero as e^``order``: only the tokens of the lowest
    order have mass in the limit.
    """
    zero_c, zero_u = log_c == -torch.inf, log_u == -torch.inf
    order_V = exponent_c * zero_c.double() + exponent_u * zero_u.double()
    finite_V = exponent_c * log_c.masked_fill(zero_c, 0.0) + exponent_u * log_u.masked_fill(zero_u, 0.0)
    return finite_V.masked_fill(order_V > order_V.min(), -torch.inf)


def _contrast(log_c: torch.Tensor, log_u: torch.Tensor, weight: float) -> torch.Tensor:
    """log (p_c (p_c / p_u)^weight) up to a constant, in the limit where p_u is 0."""
    if weight == 0:
        return log_c
    possible_V = log_c > -torch.inf
    infinite_V = possible_V & (log_u == -torch.inf)
    if infinite_V.any():
        return torch.where(infinite_V, (1 + weight) * log_c, -torch.inf)
    return torch.where(possible_V, log_c + weight * (log_c - log_u), -torch.inf)


def _distribution(log_weights_V: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Probabilities after temperature, ``top_k`` and ``top_p``; a temperature below 1e-9 keeps one token."""
    cold = 0 < decoding.temperature < 1e-9
    temperature = 1.0 if cold else decoding.temperature or 1.0
    probs_V = torch.softmax((log_weights_V - log_weights_V.max()) / temperature, -1)
    order = torch.sort(probs_V, descending=True, stable=True).indices.tolist()
    order = order[: 1 if cold else decoding.top_k or None]
    mass, preceding = probs_V[order].sum().item(), 0.0
    kept: set[int] = set()
    for token in order:
        if kept and decoding.top_p < 1 and preceding >= decoding.top_p * mass:
            break
        kept.add(token)
        preceding += probs_V[token].item()
    probs_V[[token for token in range(len(probs_V)) if token not in kept]] = 0.0
    return probs_V / probs_V.sum()
