"""What every decoder takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from jsfree.config import Decoding
from jsfree.decoding.sampling import NoiseKey
from jsfree.models import Captioner

Finish = Literal["stop", "length"]


@dataclass(frozen=True, eq=False)
class Request:
    """One caption to be decoded.

    ``ratio`` is the hallucination ratio h of Eq. 3; two requests that hold the same ``image`` object and the
    same prompt share its prefill; ``noise`` is the key of the caption's random stream.
    """

    request_id: str
    image: Image.Image
    prompt: str
    ratio: float
    noise: NoiseKey
    decoding: Decoding


@dataclass(frozen=True)
class Caption:
    """A finished caption. ``token_ids`` end with the end token when ``finish`` is ``stop``."""

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    finish: Finish


def finished(captioner: Captioner, request: Request, token_ids: Sequence[int]) -> Caption | None:
    """The caption, if these tokens complete it; None while it goes on."""
    if token_ids[-1] in captioner.eos_ids:
        finish: Finish = "stop"
    elif len(token_ids) >= request.decoding.max_new_tokens:
        finish = "length"
    else:
        return None
    return Caption(request.request_id, tuple(token_ids), captioner.text(token_ids), finish)
