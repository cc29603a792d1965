"""What every decoder takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from jsfree.config import Decoding
from jsfree.errors import DecodingError
from jsfree.models.loading import Captioner

Finish = Literal["stop", "length"]
NO_MEMORY = (
    "its keys and values do not fit into the memory that is free; stop what else runs on the device, or set"
    " 'max_new_tokens' lower"
)
NO_TOKEN = (
    "after {at} tokens the model gives no token that may be drawn any probability: its logits are not numbers, or all"
    " minus infinity; check the model's weights, or set 'captioner.dtype: float32'"
)


@dataclass(frozen=True, eq=False)
class Request:
    """One caption to be decoded.

    ``pixels`` is the preprocessed image, (3, height, width), on the CPU; two requests that hold the same object
    and the same prompt share its prefill. ``ratio`` is the hallucination ratio h of Eq. 3; ``noise`` the key of
    the caption's random stream.
    """

    request_id: str
    pixels: torch.Tensor
    prompt: str
    ratio: float
    noise: int
    decoding: Decoding


@dataclass(frozen=True)
class Caption:
    """A finished caption.

    ``token_ids`` end with the end token, or with what completed a stop string, when ``finish`` is ``stop``; the
    ``text`` ends before either.
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    finish: Finish


@dataclass(frozen=True)
class Step:
    """What a step has made: tokens with their requests' ids, captions that they completed, and requests that failed."""

    drawn: list[tuple[str, int]] = field(default_factory=list)
    finished: list[Caption] = field(default_factory=list)
    failed: list[tuple[str, DecodingError]] = field(default_factory=list)

    def fail(self, request: Request, kind: type[DecodingError], reason: str) -> None:
        """Add a request that cannot be decoded."""
        self.failed.append((request.request_id, kind(f"request {request.request_id!r}: {reason}")))


def finished(captioner: Captioner, request: Request, token_ids: Sequence[int]) -> Caption | None:
    """The caption, if these tokens complete it; None while it goes on."""
    spelt = captioner.decode(token_ids) if request.decoding.stop else ""
    stopped_at = min((spelt.index(stop) for stop in request.decoding.stop if stop in spelt), default=None)
    if token_ids[-1] in captioner.eos_ids or stopped_at is not None:
        finish: Finish = "stop"
    elif len(token_ids) >= request.decoding.max_new_tokens:
        finish = "length"
    else:
        return None
    text = captioner.text(token_ids) if stopped_at is None else spelt[:stopped_at].lstrip()
    return Caption(request.request_id, tuple(token_ids), text, finish)
