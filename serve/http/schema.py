"""The OpenAI schema: requests read strictly, answers written as the official client expects them.

A field that is not known, or not supported, is refused with its name: a setting that is ignored would be worse
than an error. A field whose value asks for nothing (``stream: false``) is accepted, as is null at every level.
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
from serve.http.security import admitted_image, admitted_prompt

# Fields of OpenAI's schema that are not supported, with the values that ask for nothing.
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
MAX_STOPS, MAX_STOP_CHARS = 4, 100

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Body):
    """Text beside the image."""

    type: Literal["text"]
    text: str


class ImageUrl(_Body):
    """An image; ``detail`` is accepted and changes nothing, the model sees one size."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Body):
    """The image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Body):
    """A message; only one of the user's is supported."""

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
    """``POST /compare``: one image to both models, greedy unless a temperature is given."""

    image: str
    prompt: str | None = None
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    max_tokens: Tokens | None = None
    seed: Seed | None = None


Request = TypeVar("Request", ChatRequest, CompareRequest)


def parsed(kind: type[Request], body: bytes, settings: Serve) -> Request:
    """Read a request's body.

    Raises:
        ApiError: it is no JSON object, or a field is unknown, unsupported or of a wrong value.
    """
    given = json_object(body, settings.max_prompt_chars)
    for name in sorted(UNSUPPORTED.keys() & given.keys()):
        if not any(value == given[name] for value in UNSUPPORTED[name]):
            raise invalid(f"{name!r} is not supported here; leave it out", name, "unsupported_parameter")
        del given[name]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _explained(error) from None


def question_of(chat: ChatRequest, settings: Serve) -> Question:
    """What a chat request asks of its model.

    Raises:
        ApiError: it does not hold exactly one image and a text, or breaks a limit.
    """
    if len(chat.messages) != 1 or chat.messages[0].role != "user":
        raise invalid("send exactly one message, of role 'user', with one image and a text", "messages")
    parts = list(enumerate(chat.messages[0].content))
    images = [(index, part) for index, part in parts if isinstance(part, ImagePart)]
    texts = [part.text for _, part in parts if isinstance(part, TextPart)]
    if len(images) != 1:
        message = f"send exactly one image, as a part of type 'image_url'; found {len(images)}"
        raise invalid(message, "messages.0.content", "invalid_image_count")
    if chat.n > settings.max_choices:
        raise invalid(f"'n' may be {settings.max_choices} at most", "n")
    index, image = images[0]
    return Question(
        image=admitted_image(image.image_url.url, settings, f"messages.0.content.{index}.image_url.url"),
        prompt=admitted_prompt("\n".join(texts), settings, "messages.0.content"),
        temperature=chat.temperature,
        top_p=chat.top_p,
        max_tokens=_length(chat, settings),
        seed=_seed(chat.seed),
        choices=chat.n,
        stop=tuple(chat.stop),
    )


def question_to_both(compare: CompareRequest, settings: Serve, prompt: str) -> Question:
    """What a comparison asks of both models; ``prompt`` is the text where it names none.

    Raises:
        ApiError: the image or the text is not allowed, or breaks a limit.
    """
    return Question(
        image=admitted_image(compare.image, settings, "image"),
        prompt=admitted_prompt(prompt if compare.prompt is None else compare.prompt, settings, "prompt"),
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
    """Tokens read and written, image tokens included."""
    read = sum(answer.prompt_tokens for answer in answers)
    written = sum(choice.tokens for answer in answers for choice in answer.choices)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _length(chat: ChatRequest, settings: Serve) -> int | None:
    """The longest caption; ``max_completion_tokens`` goes before the older ``max_tokens``."""
    name = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    return _checked_length(getattr(chat, name), name, settings)


def _checked_length(tokens: int | None, param: str, settings: Serve) -> int | None:
    if tokens is not None and tokens > settings.max_new_tokens:
        raise invalid(f"{param!r} may be {settings.max_new_tokens} at most", param)
    return tokens


def _seed(seed: int | None) -> int:
    return secrets.randbits(63) if seed is None else seed


def _explained(error: ValidationError) -> ApiError:
    """The first problem that pydantic found; its text names types and limits, never what was sent."""
    problem = error.errors(include_url=False, include_input=False)[0]
    path = problem["loc"]
    if len(path) > 5:  # messages, 0, content, 1, the part's type, its field: a client writes no type there
        path = path[:4] + path[5:]
    param = ".".join(str(part) for part in path)[:100]
    if problem["type"] == "extra_forbidden":
        return invalid(f"unknown field {param!r}; leave it out", param, "unknown_parameter")
    if problem["type"] == "missing":
        return invalid(f"{param!r} is missing", param, "missing_required_parameter")
    if problem["type"].startswith("union_tag"):
        return invalid(f"{param!r}: 'type' must be 'text' or 'image_url'", param, "invalid_value")
    return invalid(f"{param!r}: {problem['msg']}", param, "invalid_value")
