"""OpenAI's request schema: strict parsing of bodies.

Fields that are unknown, or that would change the answer and are not supported, are refused by name rather than ignored.
Fields that change nothing are dropped, as is null at every level.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from jsfree.config import Serve
from serve.http.bodies import json_object
from serve.http.errors import ApiError, invalid

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "min_p": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (False, True),
    "prediction": (),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Unsupported fields of OpenAI's schema, with the values that are accepted because they change nothing."""
HARMLESS = ("cache_control", "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "store")
"""Fields of clients that do not change the answer."""
MAX_STOPS, MAX_STOP_CHARS = 4, 100
MAX_MESSAGES, MAX_PARTS = 64, 16

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=-1, le=2**31)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Body):
    """A text."""

    type: Literal["text"]
    text: str
    cache_control: Any = None


class ImageUrl(_Body):
    """An image; ``detail`` is accepted but has no effect, because the model has one input size."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Body):
    """An image as a part of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl
    cache_control: Any = None


class Message(_Body):
    """A message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(max_length=MAX_PARTS)]
    name: str | None = None
    cache_control: Any = None
    annotations: Annotated[list[Any], Field(max_length=0)] = []
    tool_calls: Annotated[list[Any], Field(max_length=0)] = []

    @field_validator("content", mode="before")
    @classmethod
    def _parts(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class StreamOptions(_Body):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _Sampling(_Body):
    top_p: TopP = 1.0
    top_k: TopK = 0
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    seed: Seed | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    hallucination_ratio: Ratio = 0.0
    views: Count | None = None
    stop: Annotated[list[Stop], Field(max_length=MAX_STOPS)] = []
    stream: bool = False
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop


class ChatRequest(_Sampling):
    """``POST /v1/chat/completions``."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    temperature: Temperature = 1.0
    n: Count = 1
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    stream_options: StreamOptions = StreamOptions()


class CompareRequest(_Sampling):
    """``POST /v1/compare``: one image for several models; greedy decoding by default."""

    image: str
    prompt: str | None = None
    temperature: Temperature = 0.0
    models: Annotated[list[str], Field(min_length=1, max_length=16)] | None = None
    scores: bool = True


Request = TypeVar("Request", ChatRequest, CompareRequest)


def parse(kind: type[Request], body: bytes, settings: Serve) -> Request:
    """Parse a request's body.

    Raises:
        ApiError: the body is not a JSON object, or a field is unknown, unsupported or invalid.
    """
    given = json_object(body, settings.max_prompt_chars)
    for name in HARMLESS:
        given.pop(name, None)
    for name in sorted(UNSUPPORTED.keys() & given.keys()):
        if not any(value == given[name] for value in UNSUPPORTED[name]):
            raise invalid(f"{name!r} is not supported here; leave it out", name, "unsupported_parameter")
        del given[name]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise validation_error(error) from None


def validation_error(error: ValidationError) -> ApiError:
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
