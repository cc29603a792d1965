"""What the HTTP side asks of a model and what it gets: plain data that travels between processes.

Light on purpose: the HTTP side imports neither torch nor a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

BEFORE, AFTER = "before", "after"

# Why a model did not answer; the first three are the request's fault, and only the last two are worth another try.
Reason = Literal["context_length_exceeded", "invalid_prompt", "invalid_image", "failed", "overloaded", "unavailable"]


@dataclass(frozen=True)
class Question:
    """One image and one text, and how the captions are to be decoded.

    ``image`` is the encoded file; ``max_tokens`` of None asks for the longest caption that is allowed; ``stop``
    are texts before which a caption ends.
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
    """One caption; ``tokens`` counts what was decoded of it, end token included."""

    text: str
    finish: Literal["stop", "length"]
    tokens: int


@dataclass(frozen=True)
class Answer:
    """The captions that a question asked for."""

    choices: tuple[Choice, ...]
    prompt_tokens: int


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer; the message is for the client."""

    reason: Reason
    message: str


class CaptionModel(Protocol):
    """A model that can be asked: in this process, or the replicas of a deployment."""

    async def caption(self, question: Question) -> Answer | Refusal:
        """Captions of an image. Cancelling the call frees the slots that it takes."""

    async def healthy(self) -> bool:
        """Whether its decoding advances."""


@dataclass(frozen=True)
class RunModel:
    """One of the two models that are served: ``role`` is ``before`` or ``after``, ``name`` m0, m1..."""

    role: str
    name: str
    ref: str
