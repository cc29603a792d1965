"""Input and output of every decoder: requests, captions and the results of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from jsfree.config import Decoding
from jsfree.decoding.timing import Timing
from jsfree.errors import DecodingError, NoTokenError
from jsfree.models.families.base import ImageInputs
from jsfree.models.families.registry import window_of
from jsfree.models.loading import Captioner
from jsfree.models.prompts import ChatPrompt

Finish = Literal["stop", "length"]


@dataclass(frozen=True, eq=False)
class Request:
    """One caption to be decoded."""

    request_id: str
    image: ImageInputs | None
    """The preprocessed image. Requests with the same object and the same prompt share its prefill. None for a request
    whose image the engine does not read: at h = 1, without log-probabilities."""
    prompt: ChatPrompt
    ratio: float
    """Hallucination ratio h of Eq. 3."""
    noise_key: int
    """Key of the caption's random stream (``sampling.noise_key``)."""
    decoding: Decoding
    with_logps: bool = False
    """Whether the caption gets ``logps``. The conditional path is then evaluated at h = 1 too; tokens do not change."""
    alternatives: int | None = None
    """Whether each token gets a ``TokenLogp``, and with how many of the most probable tokens of its step. None: no."""
    presence_penalty: float = 0.0
    """Subtracted from the logits, of both paths, of every token that the caption has already."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits, of both paths, of a token for each time that the caption has it already."""
    prefix: tuple[int, ...] = ()
    """Token ids with which the caption begins. They count as its first tokens: for ``max_new_tokens``, and for the
    noise of the tokens after them, so that a caption that is cut and continued at the same h stays the same."""


@dataclass(frozen=True)
class TokenLogp:
    """A drawn token and the most probable tokens of its step.

    Log-probabilities are natural logarithms of the distribution from which the token was drawn, Eq. 3, but at
    temperature 1, without truncation and without penalties.
    """

    token: int
    logp: float
    alternatives: tuple[tuple[int, float], ...]
    """Token ids with their log-probabilities, the most probable first."""


class Drawn(NamedTuple):
    """A token that a step has drawn."""

    request_id: str
    position: int
    """Number of the caption's tokens before it. A caption that restarts, for lack of memory, draws its tokens again."""
    token: int
    logp: TokenLogp | None
    """None unless the request asks for it."""


@dataclass(frozen=True)
class Caption:
    """A finished caption.

    With ``finish`` ``stop``, ``token_ids`` include the end token, or the tokens of the stop string; ``text`` ends
    before either.
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    finish: Finish
    logps: tuple[float, ...] | None = None
    """Natural logarithm of the probability that the conditional path gave each of ``token_ids``: at temperature 1,
    without truncation, over the tokens that may be drawn. None unless the request asked for it."""
    unconditional_logps: tuple[float, ...] | None = None
    """The same of the unconditional path; also None for a caption without one (h = 0)."""
    token_logps: tuple[TokenLogp, ...] | None = None
    """One a token; None unless the request asked for ``alternatives``."""
    timing: Timing | None = field(default=None, compare=False)
    """None if the decoder does not measure it."""


@dataclass(frozen=True)
class StepResult:
    """Results of a decoding step."""

    drawn: list[Drawn] = field(default_factory=list)
    """The new tokens."""
    finished: list[Caption] = field(default_factory=list)
    failed: list[tuple[str, DecodingError]] = field(default_factory=list)
    """Request ids with their errors."""


def check_prefix(captioner: Captioner, request: Request) -> None:
    """Check a request's ``prefix``.

    Raises:
        ValueError: it is longer than the caption may be, or has ids that the model does not know.
    """
    length, limit = len(request.prefix), request.decoding.max_new_tokens
    if length > limit:
        raise ValueError(
            f"request {request.request_id!r}: a prefix of {length} tokens exceeds 'max_new_tokens' {limit}"
        )
    unknown = [token for token in request.prefix if not 0 <= token < captioner.vocabulary]
    if unknown:
        raise ValueError(f"request {request.request_id!r}: the vocabulary has no token {unknown[0]} of the prefix")


def no_memory_error(request: Request) -> DecodingError:
    """The error of a request that found no memory for too long."""
    return DecodingError(
        f"request {request.request_id!r}: its keys and values do not fit into the memory that is free",
        "stop other processes on the device, or set 'max_new_tokens' lower",
    )


def no_token_error(request: Request, tokens: int) -> NoTokenError:
    """The error of a request that has no next token after ``tokens`` tokens."""
    return NoTokenError(
        f"request {request.request_id!r}: after {tokens} tokens the model gives no token that may be drawn any"
        " probability: its logits are NaN, or all minus infinity",
        "check the model's weights, or set 'captioner.dtype: float32'",
    )


def check_window(captioner: Captioner, request: Request) -> None:
    """Check that prompt and caption fit into the sliding window of a model that has one.

    Beyond it the engine, which attends to all tokens, would not compute what the model does.

    Raises:
        DecodingError: they do not fit.
    """
    window = window_of(captioner.model.config)
    if window is None:
        return
    prompt, longest = len(captioner.prompt_ids(request.prompt, request.image)), request.decoding.max_new_tokens
    if prompt + longest > window:
        raise DecodingError(
            f"request {request.request_id!r}: image and prompt take {prompt} tokens and the caption up to {longest},"
            f" more than the sliding window of {window} tokens of the model's layers",
            f"set 'max_new_tokens' to {max(0, window - prompt)} or less",
        )


def completed_caption(
    captioner: Captioner,
    request: Request,
    token_ids: Sequence[int],
    logps: Sequence[float],
    unconditional_logps: Sequence[float] = (),
    token_logps: Sequence[TokenLogp] = (),
) -> Caption | None:
    """The caption if ``token_ids`` complete it, else None.

    Args:
        captioner: the model.
        request: the request of the caption.
        token_ids: tokens so far.
        logps: their log-probabilities; ignored unless the request asks for them.
        unconditional_logps: those of the unconditional path; empty without one.
        token_logps: those of the distribution that was drawn from; ignored unless the request asks for them.
    """
    spelt = captioner.decode(token_ids) if request.decoding.stop else ""
    stop_index = min((spelt.index(stop) for stop in request.decoding.stop if stop in spelt), default=None)
    if token_ids[-1] in captioner.eos_ids or stop_index is not None:
        finish: Finish = "stop"
    elif len(token_ids) >= request.decoding.max_new_tokens:
        finish = "length"
    else:
        return None
    text = captioner.text(token_ids) if stop_index is None else spelt[:stop_index].lstrip()
    return Caption(
        request.request_id,
        tuple(token_ids),
        text,
        finish,
        tuple(logps) if request.with_logps else None,
        tuple(unconditional_logps) if request.with_logps and unconditional_logps else None,
        None if request.alternatives is None else tuple(token_logps),
    )
