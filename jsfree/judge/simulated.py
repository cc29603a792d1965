"""A simulated judge for tests and demonstrations: it answers from known truth, and fails on request.

It is not a language model and its judgements of real captions mean nothing. It speaks the part of OpenAI's protocol
that ``client.py`` uses, over HTTP on the loopback interface.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import StrEnum
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Answer = Callable[[str, list[bytes]], str]
"""Maps the text and the encoded images of a question to the text of the reply."""


class Fault(StrEnum):
    """What the server does instead of answering properly."""

    RATE_LIMIT = "rate_limit"
    """429 with ``Retry-After`` in seconds."""
    RATE_LIMIT_DATE = "rate_limit_date"
    """429 with ``Retry-After`` as a date."""
    NO_CREDIT = "no_credit"
    """429 that no wait remedies."""
    SERVER_ERROR = "server_error"
    """500."""
    FILTERED = "filtered"
    """400 of a content filter."""
    TOO_LONG = "too_long"
    """400, because the prompt exceeds the context."""
    TIMEOUT = "timeout"
    """No response for ``SimulatedJudge.timeout`` seconds."""
    CUT_BODY = "cut_body"
    """The first half of the JSON of a proper response."""
    WRONG_SCHEMA = "wrong_schema"
    """JSON without ``choices``."""
    OTHER_MODEL = "other_model"
    """A proper reply under the name of another model."""
    REFUSAL = "refusal"
    """A refusal in the field for refusals."""
    APOLOGY = "apology"
    """A refusal as the text of a reply."""
    CUT_TEXT = "cut_text"
    """The first half of the text, as at the limit of tokens."""
    PROSE = "prose"
    """Text without the requested form."""
    NO_USAGE = "no_usage"
    """A proper reply without usage."""


ERRORS: dict[Fault, tuple[int, str | None, str]] = {
    Fault.RATE_LIMIT: (429, "rate_limit_exceeded", "Rate limit reached"),
    Fault.RATE_LIMIT_DATE: (429, "rate_limit_exceeded", "Rate limit reached"),
    Fault.NO_CREDIT: (429, "insufficient_quota", "You exceeded your current quota"),
    Fault.SERVER_ERROR: (500, None, "Internal server error"),
    Fault.FILTERED: (400, "content_filter", "The prompt was filtered"),
    Fault.TOO_LONG: (400, "context_length_exceeded", "The prompt is too long"),
}
"""Status, code and message of the faults that are HTTP errors."""


@dataclass
class SimulatedJudge:
    """The server's state, shared with the thread that serves it.

    Args:
        answer: the truth.
        model: name of the served model.
        fault: maps the number of a request in order of arrival, from 0, and the text of its question to a fault.
        latency: seconds before each response.
        retry_after: seconds that a rate limit asks to wait.
        timeout: seconds that a ``TIMEOUT`` lasts.
        api_key: the only key that is accepted; None accepts all.
        shutdown_date: the announced end of the model.
    """

    answer: Answer
    model: str = "simulated-judge"
    fault: Callable[[int, str], Fault | None] = lambda number, text: None  # noqa: ARG005
    latency: float = 0.0
    retry_after: float = 0.05
    timeout: float = 5.0
    api_key: str | None = None
    shutdown_date: str | None = None
    received: list[str] = field(default_factory=list)
    """Texts of the questions received, in order of arrival."""
    paid: Counter[str] = field(default_factory=Counter)
    """How often each question was answered by a completed reply that the client waited for."""
    in_flight: int = 0
    max_in_flight: int = 0
    arrivals: list[float] = field(default_factory=list)
    """Arrival times of the requests, in seconds of the monotonic clock."""

    def app(self) -> Starlette:
        """The web application."""
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
            ]
        )

    @contextlib.contextmanager
    def serve(self, port: int = 0) -> Iterator[str]:
        """Serve on the loopback interface while the block runs.

        Args:
            port: 0 for any free port.

        Yields:
            The base URL.
        """
        import uvicorn

        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            server = uvicorn.Server(uvicorn.Config(self.app(), log_level="error", lifespan="off"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            finally:
                server.should_exit = True
                thread.join(timeout=10)

    async def _models(self, request: Request) -> Response:
        if (refused := self._check_key(request)) is not None:
            return refused
        model: dict[str, Any] = {"id": self.model, "object": "model", "created": 0, "owned_by": "jsfree"}
        if self.shutdown_date is not None:
            model["shutdown_date"] = self.shutdown_date
        return JSONResponse({"object": "list", "data": [model]})

    async def _complete(self, request: Request) -> Response:
        if (refused := self._check_key(request)) is not None:
            return refused
        text, images = _question(await request.json())
        number = len(self.received)
        self.received.append(text)
        self.arrivals.append(time.monotonic())
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            return await self._respond(request, self.fault(number, text), text, images)
        finally:
            self.in_flight -= 1

    async def _respond(self, request: Request, fault: Fault | None, text: str, images: list[bytes]) -> Response:
        await asyncio.sleep(self.timeout if fault is Fault.TIMEOUT else self.latency)
        if fault in ERRORS:
            return self._http_error(fault)
        if await request.is_disconnected():  # as vLLM, which aborts the request
            return Response(status_code=499)
        self.paid[text] += 1
        if fault is Fault.WRONG_SCHEMA:
            return JSONResponse({"object": "chat.completion", "result": "no choices"})
        body = json.dumps(self._completion(fault, text, images))
        return Response(body[: len(body) // 2] if fault == Fault.CUT_BODY else body, media_type="application/json")

    def _completion(self, fault: Fault | None, text: str, images: list[bytes]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        if fault is Fault.REFUSAL:
            message["refusal"] = "I can't help with that."
        elif fault is Fault.APOLOGY:
            message["content"] = "I'm sorry, but I can't assist with that request."
        elif fault is Fault.PROSE:
            message["content"] = "That is a lovely picture, and the description is fine."
        else:
            answer = self.answer(text, images)
            message["content"] = answer[: len(answer) // 2] if fault is Fault.CUT_TEXT else answer
        finish = "length" if fault is Fault.CUT_TEXT else "stop"
        prompt, completion = len(text.split()), len(str(message["content"]).split())
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return {
            "id": "chatcmpl-simulated",
            "object": "chat.completion",
            "created": 0,
            "model": "another-model" if fault is Fault.OTHER_MODEL else self.model,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            **({} if fault is Fault.NO_USAGE else {"usage": usage}),
        }

    def _http_error(self, fault: Fault) -> Response:
        status, code, message = ERRORS[fault]
        headers = {}
        if fault is Fault.RATE_LIMIT:
            headers["Retry-After"] = f"{self.retry_after:g}"
        if fault is Fault.RATE_LIMIT_DATE:
            headers["Retry-After"] = formatdate(time.time() + self.retry_after, usegmt=True)
        return _error(status, code, message, headers)

    def _check_key(self, request: Request) -> Response | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.api_key is None or given == self.api_key:
            return None
        return _error(401, "invalid_api_key", f"Incorrect API key provided: {given}", {})  # some servers echo the key


def table_answer(table: Mapping[str, str]) -> Answer:
    """Answers by the first key of ``table`` that the question contains; without one, by prose."""

    def answer(text: str, images: list[bytes]) -> str:  # noqa: ARG001
        return next((reply for key, reply in table.items() if key in text), "I do not know.")

    return answer


def _question(body: Mapping[str, Any]) -> tuple[str, list[bytes]]:
    """The text and the images of a chat request."""
    texts, images = [], []
    for message in body["messages"]:
        content = message["content"]
        parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                images.append(base64.b64decode(part["image_url"]["url"].partition(",")[2]))
    return "\n".join(texts), images


def _error(status: int, code: str | None, message: str, headers: Mapping[str, str]) -> Response:
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return JSONResponse(body, status_code=status, headers=dict(headers))
