"""Responses in OpenAI's format: completions, chunks of streams, and usage."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.http.protocol import Answer, Delta, TokenScore, TokenText

LOWEST_LOGP = -9999.0
"""OpenAI's number for a probability of zero, which JSON cannot express as a logarithm."""
DONE = b"data: [DONE]\n\n"


def _identifier() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def completion(model: str, answer: Answer) -> dict[str, Any]:
    """A ``chat.completion`` object."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "finish_reason": choice.finish,
            "logprobs": None if choice.scores is None else logprobs(choice.scores),
        }
        for index, choice in enumerate(answer.choices)
    ]
    return {
        "id": _identifier(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage(answer.prompt_tokens, (choice.tokens for choice in answer.choices)),
    }


def usage(prompt_tokens: int, tokens: Iterable[int]) -> dict[str, int]:
    """OpenAI's ``usage`` object.

    Args:
        prompt_tokens: tokens of the prompt, including those of the image.
        tokens: tokens of each caption.
    """
    completion = sum(tokens)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
    }


def logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """OpenAI's ``logprobs`` object."""
    content = [
        {
            **_token(score.token, score.logp),
            "top_logprobs": [_token(token, logp) for token, logp in score.alternatives],
        }
        for score in scores
    ]
    return {"content": content, "refusal": None}


def _token(token: TokenText, logp: float) -> dict[str, Any]:
    return {"token": token.text, "logprob": max(logp, LOWEST_LOGP), "bytes": list(token.content)}


def event(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


@dataclass
class CompletionChunks:
    """The events of one streamed completion."""

    model: str
    choices: int
    include_usage: bool
    with_logprobs: bool
    identifier: str = field(default_factory=_identifier)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._tokens = [0] * self.choices

    def first(self) -> bytes:
        """The role of each choice."""
        return b"".join(
            self._chunk(index, {"role": "assistant", "content": "", "refusal": None}) for index in range(self.choices)
        )

    def of(self, deltas: Sequence[Delta]) -> bytes:
        """New text of some choices; an ended one has another chunk with its reason."""
        events: list[bytes] = []
        for delta in deltas:
            self._tokens[delta.choice] = delta.tokens
            if delta.text or delta.scores:
                events.append(self._chunk(delta.choice, {"content": delta.text}, scores=delta.scores))
            if delta.finish is not None:
                events.append(self._chunk(delta.choice, {}, finish=delta.finish))
        return b"".join(events)

    def last(self, prompt_tokens: int) -> bytes:
        """What follows the last choice: the usage, if it was asked for, and the end."""
        counted = event(self._object([], usage(prompt_tokens, self._tokens))) if self.include_usage else b""
        return counted + DONE

    def _chunk(
        self, index: int, delta: dict[str, Any], finish: str | None = None, scores: Sequence[TokenScore] = ()
    ) -> bytes:
        probabilities = logprobs(scores) if self.with_logprobs and scores else None
        choice = {"index": index, "delta": delta, "logprobs": probabilities, "finish_reason": finish}
        return event(self._object([choice], None))

    def _object(self, choices: list[dict[str, Any]], used: dict[str, int] | None) -> dict[str, Any]:
        return {
            "id": self.identifier,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **({"usage": used} if self.include_usage else {}),
        }
