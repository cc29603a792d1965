"""Settings of a judge, its price table, and its API key, which only the environment holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from jsfree.config.loading import validate
from jsfree.config.settings import Positive, Section
from jsfree.config.strict_yaml import read_mapping
from jsfree.errors import ConfigError

PositiveNumber = Annotated[float, Field(gt=0)]
Money = Annotated[float, Field(ge=0)]
MILLION = 1_000_000


class JudgeSettings(Section):
    """A judge and how it is asked. The default is an open model at a fixed revision, served by vLLM on this machine.

    Start it with ``vllm serve Qwen/Qwen3-VL-32B-Instruct --revision 0cfaf48183f594c314753d30a4c4974bc75f3ccb``.
    """

    url: str = "http://127.0.0.1:8000/v1"
    """Base URL of an API that is compatible with OpenAI's, usually ending in ``/v1``."""
    model: str = "Qwen/Qwen3-VL-32B-Instruct"
    """Name of the model in requests."""
    revision: str | None = "0cfaf48183f594c314753d30a4c4974bc75f3ccb"
    """Revision of the served weights, a part of every result. The API cannot confirm it. ``null``: unknown, as with
    hosted models, whose names include a date; cached replies are then used for the same ``url`` only. Setting another
    ``model`` without a revision sets it to ``null``."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    """Sampling temperature. ``null``: leave it out, for models that accept only their default."""
    max_tokens: Positive = 1024
    """Maximum number of tokens of a reply."""
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the limit in requests. OpenAI's reasoning models accept only ``max_completion_tokens``."""
    concurrency: Positive = 8
    """Maximum number of requests in flight."""
    requests_per_minute: Positive | None = None
    """Maximum number of requests in any minute, retries included. ``null``: no limit."""
    tokens_per_minute: Positive | None = None
    """Maximum number of tokens of prompts and replies in any minute. ``null``: no limit."""
    timeout: PositiveNumber = 120
    """Seconds until a request without a reply is sent again."""
    attempts: Positive = 6
    """Maximum number of times a request is sent. Only rate limits (429), server errors (5xx), timeouts and broken
    connections are tried again."""
    backoff: PositiveNumber = 1.0
    """Seconds before the second attempt at most; the limit doubles with every attempt. The wait is drawn at random
    from the upper half."""
    max_wait: PositiveNumber = 600
    """Maximum seconds to wait because a server asks for it (``Retry-After``). Beyond it, the run stops."""
    max_failures: Positive = 20
    """Number of consecutive requests without a reply after which the run stops, because the server is down."""
    budget: Money | None = None
    """Maximum cost of one command, in the currency of ``prices``. A request is not sent if it, together with those in
    flight, could exceed it. ``null``: no limit."""
    prices: str | None = None
    """Path of a YAML price table (see ``read_prices``). ``null``: costs are not computed."""
    image_tokens: Positive = 2048
    """Upper bound of the tokens of an image, for rate limits and the budget until a reply states the true number."""
    cache: str = "~/.cache/jsfree/judge"
    """Local folder of paid replies. Several processes may use it at the same time."""
    api_key_variable: str = "JSFREE_JUDGE_API_KEY"
    """Environment variable with the API key. Without the variable, the server is asked without a key."""

    @model_validator(mode="before")
    @classmethod
    def _drop_default_revision(cls, values: Any) -> Any:
        if isinstance(values, dict) and "revision" not in values:
            default = cls.model_fields["model"].default
            if values.get("model", default) != default:
                return {**values, "revision": None}
        return values

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            known = False
        if not known:
            raise ValueError(f"{url!r} is no http or https URL")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("the URL must not contain a user name, password, query or fragment: results record it")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _check_budget(self) -> JudgeSettings:
        if self.budget is not None and self.prices is None:
            raise ValueError("'budget' requires 'prices', a price table")
        return self

    def api_key(self) -> str | None:
        """The API key from the environment; None if the variable is not set or empty."""
        return os.environ.get(self.api_key_variable) or None

    def identity(self) -> dict[str, Any]:
        """What determines the replies, as results record it."""
        return self.model_dump(include={"url", "model", "revision", "temperature", "max_tokens"})


class Price(Section):
    """The price of a model's tokens, per million."""

    input: Money
    """Tokens of prompts, including those of images."""
    output: Money
    """Tokens of replies, including those of hidden reasoning."""
    cached_input: Money | None = None
    """Tokens of prompts that the server had in its own cache. ``null``: as ``input``."""

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """The cost of one reply.

        Args:
            cached_tokens: the part of ``prompt_tokens`` that the server had in its own cache.
        """
        cached_price = self.input if self.cached_input is None else self.cached_input
        prompt = (prompt_tokens - cached_tokens) * self.input + cached_tokens * cached_price
        return (prompt + completion_tokens * self.output) / MILLION


class PriceTable(Section):
    """Prices of models, with the day they were read."""

    currency: str
    """Currency of all prices and of the budget, such as ``USD``."""
    as_of: date
    """The day on which the prices were valid; results record it."""
    models: dict[str, Price]
    """Prices by the name of the model in requests."""

    def price_of(self, model: str, where: str) -> Price:
        """The price of a model.

        Raises:
            ConfigError: the table does not have the model.
        """
        if model not in self.models:
            known = ", ".join(sorted(self.models)) or "none"
            raise ConfigError(f"{where}: no price for the model {model!r}", f"add it to 'models' (there: {known})")
        return self.models[model]


def read_prices(path: str) -> PriceTable:
    """Read a price table.

    .. code-block:: yaml

        currency: USD
        as_of: 2026-11-01
        models:
          some-model-2026-08-01: {input: 0.40, output: 1.60, cached_input: 0.10}  # per million tokens

    Raises:
        ConfigError: the file cannot be read or is no price table.
    """
    content = _read_file(path, "correct 'judge.prices'")
    return validate(PriceTable, read_mapping(content, path), path)


def read_settings(path: str | None, overrides: Mapping[str, Any] | None = None) -> JudgeSettings:
    """Read the settings of a judge from a YAML file, with or without the key ``judge`` around them.

    Args:
        path: None for the defaults.
        overrides: values by key that replace those of the file; None is ignored.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is invalid.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = read_mapping(_read_file(path, "correct the path of the judge's settings"), path)
        values = values["judge"] if set(values) == {"judge"} and isinstance(values["judge"], dict) else values
    values |= {key: value for key, value in (overrides or {}).items() if value is not None}
    return validate(JudgeSettings, values, path or "judge")


def _read_file(path: str, remedy: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", remedy) from error
