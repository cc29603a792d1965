"""The interface between the HTTP server and a model: plain data that is sent between processes.

Imports neither torch nor a model, so that the HTTP server does not load them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

BEFORE, AFTER = "before", "after"

Reason = Literal["context_length_exceeded", "invalid_prompt", "invalid_image", "failed", "overloaded", "unavailable"]
"""Why a model did not answer: the first three are errors of the request, only the last two can succeed when retried."""


@dataclass(frozen=True)
class Question:
    """One image, one text, and the decoding settings.

    Attributes:
        image: the encoded image file.
        max_tokens: maximum length of a caption; None for the longest that the server allows.
        choices: number of captions.
        stop: a caption ends before the first of these strings.
    """

    image: bytes
    prompt: str
    temperature: float
    top_p: float
    max_tokens: int | None
    seed: int
    choices: int = 1
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One caption; ``tokens`` counts its decoded tokens, including the end token."""

    text: str
    finish: Literal["stop", "length"]
    tokens: int


@dataclass(frozen=True)
class Answer:
    """The captions of a question."""

    choices: tuple[Choice, ...]
    prompt_tokens: int


@dataclass(frozen=True)
class Refusal:
    """The reason why a question has no answer, with a message for the client."""

    reason: Reason
    message: str


class CaptionModel(Protocol):
    """A model in this process, or the replicas of a deployment."""

    async def caption(self, question: Question) -> Answer | Refusal:
        """Caption an image; cancelling the call frees its slots."""

    async def healthy(self) -> bool:
        """Whether decoding makes progress."""


@dataclass(frozen=True)
class RunModel:
    """A model that is served; ``role`` is ``before`` or ``after``, ``name`` is m0, m1, ..."""

    role: str
    name: str
    ref: str
