"""Replies of a judge: the body of a response, the stored reply, and JSON within its text."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from jsfree.errors import JsfreeError

ErrorKind = Literal[
    "refusal",
    "truncated",
    "unparsable",
    "undecodable",
    "rejected",
    "malformed",
    "timeout",
    "connection",
    "rate_limit",
    "server_error",
]
"""``refusal``: the judge refuses to answer; ``truncated``: the reply reached ``max_tokens`` and cannot be parsed;
``unparsable``: it does not have the requested form; ``undecodable``: the image has an unknown format; ``rejected``: the
server does not accept the request; ``malformed``: the response is no chat completion; the others: no reply after all
attempts."""
REFUSAL = re.compile(
    r"^\W*(?:i['’]?m sorry|sorry|i apologi[sz]e|i (?:can(?:no|['’])t|am unable|am not able|must decline)|as an ai)\b",
    re.IGNORECASE,
)
FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


class ReplyError(JsfreeError):
    """The text of a reply does not have the requested form; counted as ``unparsable``."""


@dataclass(frozen=True)
class Reply:
    """A reply of a judge, as it is stored.

    Args:
        text: what the judge wrote; empty if it refused.
        refusal: the server's separate text of a refusal.
        finish: why the reply ended, such as ``stop``, ``length`` or ``content_filter``.
        model: the name of the model that the server reports, which may differ from the requested one.
        prompt_tokens: None if the server does not report usage; likewise ``completion_tokens``.
        cached_tokens: the part of ``prompt_tokens`` that the server had in its own cache.
    """

    text: str
    refusal: str | None
    finish: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        """The reply as the store writes it."""
        return asdict(self)

    def problem(self) -> ErrorKind:
        """The kind of error if the text cannot be parsed."""
        if self.is_refused or REFUSAL.match(self.text):
            return "refusal"
        return "truncated" if self.finish == "length" else "unparsable"

    @property
    def is_refused(self) -> bool:
        """Whether the server marks the reply as a refusal."""
        return bool(self.refusal) or self.finish == "content_filter"


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: Annotated[int, Field(ge=0)]
    completion_tokens: Annotated[int, Field(ge=0)]
    prompt_tokens_details: _Details | None = None


class _Body(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    model: str | None = None
    usage: _Usage | None = None


def parse_body(body: str) -> Reply:
    """Read the body of a chat completion.

    Raises:
        ReplyError: it is not JSON or does not have the fields of a chat completion.
    """
    try:
        read = _Body.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ReplyError(f"the response is no chat completion: {f'{key}: ' if key else ''}{first['msg']}") from None
    choice, usage = read.choices[0], read.usage
    details = usage.prompt_tokens_details if usage else None
    return Reply(
        text=choice.message.content or "",
        refusal=choice.message.refusal,
        finish=choice.finish_reason,
        model=read.model,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
    )


def json_object(text: str) -> dict[str, Any]:
    """The JSON object of a reply: the whole text, a fenced block, or from the first brace to the last.

    Raises:
        ReplyError: there is none.
    """
    candidates = [text, *FENCE.findall(text), text[text.find("{") : text.rfind("}") + 1]]
    for candidate in candidates:
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    raise ReplyError("the reply contains no JSON object")
