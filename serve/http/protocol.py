"""The interface between the HTTP server and a model: plain data that is sent between processes.

Imports neither torch nor a model, so that the HTTP server does not load them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from jsfree.decoding.timing import Timing
from jsfree.models.prompts import ChatPrompt

BEFORE, AFTER = "before", "after"

Finish = Literal["stop", "length"]
Reason = Literal[
    "context_length_exceeded",
    "invalid_prompt",
    "invalid_image",
    "unsupported_value",
    "failed",
    "overloaded",
    "unavailable",
]
"""Why a model did not answer: the first four are errors of the request, only the last two can succeed when retried."""


@dataclass(frozen=True)
class Question:
    """One image or none, a text or a conversation, and the decoding settings.

    Attributes:
        image: the encoded image file; None for a question without an image.
        top_k: number of most probable tokens to keep; 0 keeps all.
        max_tokens: maximum length of a caption; None for the longest that the server allows.
        choices: number of captions.
        stop: a caption ends before the first of these strings.
        ratio: hallucination ratio h of Eq. 3.
        views: views of the image whose probabilities are averaged; None for the server's own number.
        presence_penalty: subtracted from the logits of tokens that the caption has already.
        frequency_penalty: subtracted for each time that the caption has a token already.
        alternatives: most probable tokens of each step that are reported; None for no log-probabilities.
    """

    image: bytes | None
    prompt: ChatPrompt
    temperature: float
    top_p: float
    max_tokens: int | None
    seed: int
    choices: int = 1
    stop: tuple[str, ...] = ()
    top_k: int = 0
    ratio: float = 0.0
    views: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    alternatives: int | None = None


@dataclass(frozen=True)
class TokenText:
    """A token as text: ``content`` are its bytes, of which ``text`` shows those that are not UTF-8 as escapes."""

    text: str
    content: bytes


@dataclass(frozen=True)
class TokenScore:
    """A drawn token with its log-probability, and the most probable tokens of its step with theirs."""

    token: TokenText
    logp: float
    alternatives: tuple[tuple[TokenText, float], ...]


@dataclass(frozen=True)
class Choice:
    """One caption.

    Attributes:
        tokens: number of its decoded tokens, including the end token.
        scores: its tokens without the end token; None unless the question asks for them.
        timing: when it was decoded; None if the engine does not measure it.
    """

    text: str
    finish: Finish
    tokens: int
    scores: tuple[TokenScore, ...] | None = None
    timing: Timing | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Answer:
    """The captions of a question."""

    choices: tuple[Choice, ...]
    prompt_tokens: int


@dataclass(frozen=True)
class Refusal:
    """The reason why a question has no answer, with a message for the client, and the field that is wrong if known."""

    reason: Reason
    message: str
    field: str | None = None


@dataclass(frozen=True)
class Started:
    """The first part of a streamed answer."""

    prompt_tokens: int


@dataclass(frozen=True)
class Delta:
    """The next part of a caption.

    Attributes:
        choice: number of the caption.
        text: what follows the texts of the earlier parts; together they are the caption's text.
        scores: tokens since the last part, if the question asks for them. Their text may follow in later parts.
        tokens: number of the caption's tokens so far.
        finish: why the caption has ended, in its last part.
        timing: when it was decoded, in its last part; None if the engine does not measure it.
    """

    choice: int
    text: str
    scores: tuple[TokenScore, ...]
    tokens: int
    finish: Finish | None = None
    timing: Timing | None = field(default=None, compare=False)


Part = Started | tuple[Delta, ...] | Refusal
"""A part of a streamed answer: first ``Started``, then new text of one caption or several. A refusal ends it."""


class CaptionModel(Protocol):
    """A model in this process, or the replicas of a deployment."""

    async def caption(self, question: Question) -> Answer | Refusal:
        """Caption an image; cancelling the call frees its slots."""

    def stream(self, question: Question) -> AsyncGenerator[Part, None]:
        """Caption an image as ``caption`` does, in parts; closing the generator frees its slots."""

    async def healthy(self) -> bool:
        """Whether decoding makes progress."""

    async def context_length(self) -> int | None:
        """Most tokens of prompt and caption; None if the model does not answer."""


@dataclass(frozen=True)
class ScoredSentence:
    """A sentence of a caption with the cosine of its embedding with the image's, by CLIP; None if it is not scored."""

    text: str
    score: float | None


class Scorer(Protocol):
    """A CLIP model in this process, or the replicas of a deployment."""

    async def score(self, image: bytes, captions: Sequence[str]) -> list[list[ScoredSentence]] | None:
        """The sentences of each caption with their scores; None if the model does not answer."""


@dataclass(frozen=True)
class RunModel:
    """A model that is served.

    Attributes:
        role: ``before`` (m0), ``after`` (the last model), or the name of another model.
        name: m0, m1, ...
        ref: reference of the model.
        parent: name of the model from which it was trained; None for m0.
    """

    role: str
    name: str
    ref: str
    parent: str | None = None
