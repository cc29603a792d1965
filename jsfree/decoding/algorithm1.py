"""The paper's Algorithm 1, lines 3 to 7, word for word: one caption, no cache, two full forwards a token.

Slow on purpose: it is the oracle that the batched decoder is tested against.
"""

from __future__ import annotations

import torch

from jsfree.decoding import mixing, sampling
from jsfree.decoding.requests import Caption, Request, finished
from jsfree.models import Captioner


@torch.inference_mode()
def decode(captioner: Captioner, request: Request, mode: mixing.Mixing = "probability") -> Caption:
    """Decode one caption."""
    pixels = captioner.pixel_values([request.image])
    with_image = captioner.prompt_ids(request.prompt, image=True)
    without_image = captioner.prompt_ids(request.prompt, image=False)
    greedy = torch.tensor([request.decoding.temperature == 0], device=captioner.device)
    tokens: list[int] = []
    while True:
        conditional = _last_logits(captioner, [*with_image, *tokens], pixels)
        unconditional = _last_logits(captioner, [*without_image, *tokens], None)
        log_probs = mixing.next_token_log_probs(
            conditional,
            unconditional,
            ratio_B=torch.tensor([request.ratio], dtype=torch.float32, device=captioner.device),
            temperature_B=torch.tensor([request.decoding.temperature], dtype=torch.float32, device=captioner.device),
            top_p_B=torch.tensor([request.decoding.top_p], dtype=torch.float32, device=captioner.device),
            mixing=mode,
        )
        noise = sampling.gumbel([request.noise], [len(tokens)], log_probs.shape[-1], captioner.device)
        tokens.append(int(sampling.draw(log_probs, noise, greedy, captioner.suppressed_ids)))
        caption = finished(captioner, request, tokens)
        if caption is not None:
            return caption


def _last_logits(captioner: Captioner, token_ids: list[int], pixels: torch.Tensor | None) -> torch.Tensor:
    """Logits of the token after ``token_ids``, (1, vocabulary)."""
    ids = torch.tensor([token_ids], device=captioner.device)
    logits: torch.Tensor = captioner.model(input_ids=ids, pixel_values=pixels, use_cache=False).logits
    return logits[:, -1]
