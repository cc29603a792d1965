"""Requests for the captions of a pair, with the loser as in the paper or in a published baseline (``generate.loser``).

| ``generate.loser`` | the loser is decoded                                           | its ratio |
|--------------------|----------------------------------------------------------------|-----------|
| ``ratio``          | by Eq. 3 at its drawn hallucination ratio                      | as drawn  |
| ``noised_image``   | from the image with diffusion noise (arXiv 2402.11411)         | 0         |
| ``bad_prompt``     | from the image with another prompt (arXiv 2405.19716)          | 0         |
| ``continuation``   | without the image, after half of the winner (arXiv 2411.10442) | 1         |
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from jsfree.config import Generate
from jsfree.decoding.mixing import add_diffusion_noise
from jsfree.decoding.requests import Caption, Request
from jsfree.models.loading import Captioner
from jsfree.schemas import HIGH, LOW, SAMPLE, Role
from jsfree.stages.ratios import draw_ratios


def ratios_by_role(settings: Generate, seed: int, round_number: int, sample_id: str) -> dict[Role, float]:
    """Hallucination ratio of each caption of a sample. The result depends only on the arguments."""
    pair = draw_ratios(settings.ratios, seed, round_number, sample_id)
    high = {"ratio": pair.high, "continuation": 1.0}.get(settings.loser, 0.0)
    further = {f"{SAMPLE}-{number}": 0.0 for number in range(1, settings.samples + 1)}
    return {LOW: pair.low, HIGH: high, **further}


def loser_request(request: Request, settings: Generate, captioner: Captioner) -> Request:
    """The request for the loser, given that of an ordinary caption with the loser's ratio and noise key."""
    if settings.loser == "noised_image":
        assert request.image is not None
        noised = captioner.map_pixels(request.image, partial(add_diffusion_noise, step=settings.noise_step))
        return replace(request, image=noised)
    if settings.loser == "bad_prompt":
        return replace(request, prompt=settings.bad_prompt)
    if settings.loser == "continuation" and not request.with_logps:
        return replace(request, image=None)  # the request waits for the winner, and its image need not
    return request


def continue_winner(request: Request, winner: Caption) -> Request:
    """The loser's request, which begins with the first half of the winner's tokens, rounded down."""
    return replace(request, prefix=winner.token_ids[: len(winner.token_ids) // 2])
