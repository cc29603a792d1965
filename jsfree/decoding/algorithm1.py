"""The paper's Algorithm 1, lines 3 to 7, word for word: one caption, no cache, two full forwards a token.

Slow on purpose: it is the oracle that the batched engine is tested against.
"""

from __future__ import annotations

import torch

from jsfree.decoding import mixing, sampling
from jsfree.decoding.requests import Caption, Request, finished
from jsfree.models import Captioner


def decode(captioner: Captioner, request: Request, mixed: mixing.Mixing | None = None) -> Caption:
    """Decode one caption."""
    noise = sampling.NoiseStream(request.noise, captioner.vocabulary)
    tokens: list[int] = []
    while True:
        probs_1V = next_token_probs(captioner, request, tokens, mixed)
        noise_1N = torch.from_numpy(noise.token())[None].to(captioner.device)
        greedy = request.decoding.temperature == 0
        tokens.append(int(sampling.draw(probs_1V, noise_1N, [greedy], captioner.suppressed_ids)))
        caption = finished(captioner, request, tokens)
        if caption is not None:
            return caption


@torch.inference_mode()
def next_token_probs(
    captioner: Captioner, request: Request, tokens: list[int], mixed: mixing.Mixing | None = None
) -> torch.Tensor:
    """What the token after ``tokens`` is drawn from, (1, vocabulary)."""
    mixed = mixed or mixing.Probability()
    pixels = captioner.batch([request.pixels])
    with_image = [*captioner.prompt_ids(request.prompt, image=True), *tokens]
    without_image = [*captioner.prompt_ids(request.prompt, image=False), *tokens]
    rows = mixing.Rows.of([request.decoding], [request.ratio], [len(tokens)], captioner.device)
    conditional = _last_logits(captioner, with_image, pixels)
    if mixed.noise_step is None:
        second = _last_logits(captioner, without_image, None)
    else:
        noised = captioner.batch([mixing.noised(request.pixels, mixed.noise_step)])
        second = _last_logits(captioner, with_image, noised)
    conditional, second = (rows.without(captioner.suppressed_ids, each) for each in (conditional, second))
    return mixed.probs(conditional, second, rows)


def _last_logits(captioner: Captioner, token_ids: list[int], pixels: torch.Tensor | None) -> torch.Tensor:
    """Logits of the token after ``token_ids``, (1, vocabulary)."""
    ids = torch.tensor([token_ids], device=captioner.device)
    logits: torch.Tensor = captioner.model(input_ids=ids, pixel_values=pixels, use_cache=False).logits
    return logits[:, -1]
