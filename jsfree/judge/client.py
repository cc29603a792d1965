"""One request to a judge over HTTP, its failures classified, and the models that the server lists."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from types import TracebackType
from typing import Any, cast

import openai

from jsfree.errors import JudgeError
from jsfree.judge.limits import retry_after
from jsfree.judge.replies import ErrorKind, Reply, ReplyError, parse_body
from jsfree.judge.settings import JudgeSettings
from jsfree.texts import printable

REMEDIES = {
    401: "set the environment variable {variable} to a valid key",
    403: "use a key that may use this model",
    404: "correct 'judge.url' and 'judge.model'",
}
"""Remedies for status codes that end a run, with the name of the environment variable of the key."""
NO_MONEY = "insufficient_quota"
"""Error code of a 429 that no wait remedies."""


class AttemptError(Exception):
    """A request failed.

    Args:
        kind: the kind of the error row if no attempt succeeds.
        text: what the server or the connection reported.
        is_transient: whether to try again.
        wait: seconds that the server asked to wait; None if it did not.
        may_be_charged: whether the server may have produced a reply that did not arrive.
    """

    def __init__(
        self, kind: ErrorKind, text: str, is_transient: bool, wait: float | None = None, may_be_charged: bool = False
    ) -> None:
        super().__init__(kind, text)
        self.kind, self.text, self.is_transient = kind, text, is_transient
        self.wait, self.may_be_charged = wait, may_be_charged


@dataclass(frozen=True)
class ServedModel:
    """What the server says about the judge's model.

    Args:
        is_listed: None if the server does not list models.
        shutdown_date: the announced day from which requests fail; None without one.
    """

    is_listed: bool | None
    shutdown_date: date | None = None
    available: tuple[str, ...] = ()


class JudgeClient:
    """A connection to a judge; an asynchronous context manager."""

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings
        self._key = settings.api_key()
        self._api = openai.AsyncOpenAI(
            base_url=settings.url, api_key=self._key or "none", max_retries=0, timeout=settings.timeout
        )

    async def __aenter__(self) -> JudgeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._api.close()

    async def send(self, messages: Sequence[dict[str, Any]]) -> Reply:
        """Send the messages of a question once.

        Raises:
            AttemptError: there is no reply.
            JudgeError: no request can succeed: the key, the model or the URL is wrong, or the account is empty.
        """
        settings = self.settings
        parameters: dict[str, Any] = {settings.max_tokens_key: settings.max_tokens}
        if settings.temperature is not None:
            parameters["temperature"] = settings.temperature
        try:
            response = await self._api.chat.completions.with_raw_response.create(
                model=settings.model, messages=cast(Any, messages), **parameters
            )
        except openai.APIStatusError as error:
            raise self._classify(error) from None
        except openai.APITimeoutError:
            raise AttemptError(
                "timeout", f"no reply within {settings.timeout:g} s", True, may_be_charged=True
            ) from None
        except openai.APIConnectionError as error:
            raise self._connection_error(error) from None
        try:
            return parse_body(response.text)
        except ReplyError as error:
            text = f"{error.problem}: {self.without_key(response.text)}"
            raise AttemptError("malformed", text, False, may_be_charged=True) from None

    async def describe_model(self) -> ServedModel:
        """Look up the judge's model in ``GET /models``.

        Raises:
            JudgeError: the server cannot be reached or refuses the key.
        """
        try:
            models = {model.id: model async for model in self._api.models.list()}
        except openai.NotFoundError:
            return ServedModel(None)
        except openai.APIStatusError as error:
            failure = self._classify(error)
            if isinstance(failure, JudgeError):
                raise failure from None
            return ServedModel(None)
        except openai.APIConnectionError as error:
            raise JudgeError(
                f"{self.settings.url}: the judge cannot be reached ({self._cause(error)})",
                "start it, or correct 'judge.url'",
            ) from None
        model = models.get(self.settings.model)
        shutdown = parse_shutdown_date(getattr(model, "shutdown_date", None))
        return ServedModel(model is not None, shutdown, tuple(sorted(models)))

    def without_key(self, text: str) -> str:
        """A text of the server for messages and files: without the API key, escaped and of limited length."""
        return printable(text.replace(self._key, "***") if self._key else text)

    def _classify(self, error: openai.APIStatusError) -> AttemptError | JudgeError:
        status, text = error.status_code, self.without_key(error.message)
        if status == 429 and error.code == NO_MONEY:
            return JudgeError(f"{self.settings.url}: the account has no credit: {text}", "add credit and run it again")
        if status == 429 or status == 408 or status >= 500:
            kind: ErrorKind = "rate_limit" if status == 429 else "timeout" if status == 408 else "server_error"
            headers = cast(Mapping[str, str], error.response.headers)
            return AttemptError(kind, f"HTTP {status}: {text}", True, retry_after(headers, time.time()))
        if error.code == "content_filter" or "content_policy" in str(error.code):
            return AttemptError("refusal", f"HTTP {status}: {text}", False)
        if status in REMEDIES:
            remedy = REMEDIES[status].format(variable=self.settings.api_key_variable)
            return JudgeError(f"{self.settings.url}: HTTP {status}: {text}", remedy)
        return AttemptError("rejected", f"HTTP {status}: {text}", False)

    def _connection_error(self, error: openai.APIConnectionError) -> AttemptError:
        cause = self._cause(error)
        never_sent = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout", "PoolTimeout")
        return AttemptError("connection", cause, True, may_be_charged=not never_sent)

    def _cause(self, error: openai.APIConnectionError) -> str:
        return self.without_key(str(error.__cause__ or error) or type(error.__cause__).__name__)


def parse_shutdown_date(value: object) -> date | None:
    """The day of a ``shutdown_date``: an ISO 8601 date or time, or seconds since the epoch; None if it is neither."""
    try:
        if isinstance(value, int | float) or (isinstance(value, str) and value.isdecimal()):
            return datetime.fromtimestamp(float(value), UTC).date()
        return datetime.fromisoformat(str(value)).date() if value else None
    except (ValueError, OverflowError, OSError):
        return None
