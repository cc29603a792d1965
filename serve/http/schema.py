"""OpenAI's schema: strict parsing of requests, and responses for the official client.

Unknown and unsupported fields are refused by name rather than ignored. An unsupported field is accepted if its value is
the default (``stream: false``), as is null at every level.
"""

from __future__ import annotations

import secrets
import time
import uuid
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from jsfree.config import Serve
from serve.http.bodies import json_object
from serve.http.errors import ApiError, invalid
from serve.http.protocol import Answer, Question
from serve.http.security import checked_image, checked_prompt

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (False, True),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "stream": (False,),
    "stream_options": ({}, {"include_usage": False}),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Unsupported fields of OpenAI's schema, with the values that are accepted because they change nothing."""
MAX_STOPS, MAX_STOP_CHARS = 4, 100

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Body):
    """A text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Body):
    """An image; ``detail`` is accepted but has no effect, because the model has one input size."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Body):
    """An image as a part of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Body):
    """A message."""

    role: str
    content: Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(max_length=16)]
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _parts(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ChatRequest(_Body):
    """``POST /v1/chat/completions``."""

    model: str
    messages: list[Message]
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1)] = 1
    stop: Annotated[list[Stop], Field(max_length=MAX_STOPS)] = []
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop


class CompareRequest(_Body):
    """``POST /compare``: one image for both models; greedy decoding by default."""

    image: str
    prompt: str | None = None
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    max_tokens: Tokens | None = None
    seed: Seed | None = None


Request = TypeVar("Request", ChatRequest, CompareRequest)


def parse(kind: type[Request], body: bytes, settings: Serve) -> Request:
    """Parse a request's body.

    Raises:
        ApiError: the body is not a JSON object, or a field is unknown, unsupported or invalid.
    """
    given = json_object(body, settings.max_prompt_chars)
    for name in sorted(UNSUPPORTED.keys() & given.keys()):
        if not any(value == given[name] for value in UNSUPPORTED[name]):
            raise invalid(f"{name!r} is not supported here; leave it out", name, "unsupported_parameter")
        del given[name]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _validation_error(error) from None


def chat_question(chat: ChatRequest, settings: Serve) -> Question:
    """The question in a chat request.

    Raises:
        ApiError: the request does not have exactly one image and a text, or exceeds a limit.
    """
    if len(chat.messages) != 1 or chat.messages[0].role != "user":
        raise invalid("send exactly one message of role 'user' with one image and a text", "messages")
    parts = list(enumerate(chat.messages[0].content))
    images = [(index, part) for index, part in parts if isinstance(part, ImagePart)]
    texts = [part.text for _, part in parts if isinstance(part, TextPart)]
    if len(images) != 1:
        message = f"found {len(images)} images; send exactly one, as a part of type 'image_url'"
        raise invalid(message, "messages.0.content", "invalid_image_count")
    if chat.n > settings.max_choices:
        raise invalid(f"'n' must be at most {settings.max_choices}", "n")
    index, image = images[0]
    return Question(
        image=checked_image(image.image_url.url, settings, f"messages.0.content.{index}.image_url.url"),
        prompt=checked_prompt("\n".join(texts), settings, "messages.0.content"),
        temperature=chat.temperature,
        top_p=chat.top_p,
        max_tokens=_length(chat, settings),
        seed=_seed(chat.seed),
        choices=chat.n,
        stop=tuple(chat.stop),
    )


def compare_question(compare: CompareRequest, settings: Serve, prompt: str) -> Question:
    """The question for both models in a comparison; ``prompt`` is the default text.

    Raises:
        ApiError: the image or the text is invalid, or exceeds a limit.
    """
    return Question(
        image=checked_image(compare.image, settings, "image"),
        prompt=checked_prompt(prompt if compare.prompt is None else compare.prompt, settings, "prompt"),
        temperature=compare.temperature,
        top_p=compare.top_p,
        max_tokens=_checked_length(compare.max_tokens, "max_tokens", settings),
        seed=_seed(compare.seed),
    )


def completion(model: str, answer: Answer) -> dict[str, Any]:
    """A ``chat.completion`` object."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "finish_reason": choice.finish,
            "logprobs": None,
        }
        for index, choice in enumerate(answer.choices)
    ]
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage([answer]),
    }


def usage(answers: list[Answer]) -> dict[str, int]:
    """OpenAI's ``usage`` object; prompt tokens include image tokens."""
    prompt = sum(answer.prompt_tokens for answer in answers)
    completion = sum(choice.tokens for answer in answers for choice in answer.choices)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _length(chat: ChatRequest, settings: Serve) -> int | None:
    """Maximum length of a caption; ``max_completion_tokens`` takes precedence over the older ``max_tokens``."""
    name = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    return _checked_length(getattr(chat, name), name, settings)


def _checked_length(tokens: int | None, param: str, settings: Serve) -> int | None:
    if tokens is not None and tokens > settings.max_new_tokens:
        raise invalid(f"{param!r} must be at most {settings.max_new_tokens}", param)
    return tokens


def _seed(seed: int | None) -> int:
    return secrets.randbits(63) if seed is None else seed


def _validation_error(error: ValidationError) -> ApiError:
    """The first error that pydantic found, without the client's input."""
    problem = error.errors(include_url=False, include_input=False)[0]
    path = problem["loc"]
    if len(path) > 5:  # messages, 0, content, 1, the part's type, its field: omit the type, which clients do not write
        path = path[:4] + path[5:]
    param = ".".join(str(part) for part in path)[:100]
    if problem["type"] == "extra_forbidden":
        return invalid(f"unknown field {param!r}; leave it out", param, "unknown_parameter")
    if problem["type"] == "missing":
        return invalid(f"{param!r} is missing", param, "missing_required_parameter")
    if problem["type"].startswith("union_tag"):
        return invalid(f"{param!r}: 'type' must be 'text' or 'image_url'", param, "invalid_value")
    return invalid(f"{param!r}: {problem['msg']}", param, "invalid_value")
