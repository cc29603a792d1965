"""The outermost ASGI middleware: identifies each request, measures it, and logs it without its contents.

A line of the log is a JSON object. It has the route, never the path as the client wrote it, and neither texts, images,
keys nor addresses:

    {"time": "2026-11-27T10:00:00.123+00:00", "request_id": "5f0c...", "method": "POST",
     "route": "/v1/chat/completions", "status": 200, "ms": 412, "key": "website", "models": ["after"],
     "prompt_tokens": 29, "completion_tokens": 61}
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jsfree.errors import StorageError
from serve.http import context
from serve.http.context import RequestRecord
from serve.http.metrics import Metrics

log = logging.getLogger("ray.serve.jsfree.access")
"""A child of Serve's logger, whose handlers write the log file of the replica; without Ray it has no handler."""
REQUEST_ID = "x-request-id"
CLIENT_CLOSED = 499
"""Status that is logged if the client disconnects before it gets an answer, as nginx does."""


class AccessLog:
    """Sets ``x-request-id`` and ``openai-processing-ms``, and logs and counts every request.

    Args:
        logger: receives a line per request.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, logger: logging.Logger = log) -> None:
        self._app = app
        self._metrics = metrics
        self._log = logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = context.begin(Headers(scope=scope).get(REQUEST_ID))
        started = time.perf_counter()
        status = CLIENT_CLOSED

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = record.id
                headers["openai-processing-ms"] = str(_milliseconds(started))
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, with_headers)
        except Exception:
            status = 500
            raise
        finally:
            route = route_of(scope)
            self._metrics.answered(route, scope["method"], status, time.perf_counter() - started)
            self._log.info("%s", json.dumps(_line(scope["method"], route, status, _milliseconds(started), record)))


def route_of(scope: Scope) -> str:
    """The route that a request was answered by, such as ``/v1/models/{model}``."""
    return str(getattr(scope.get("route"), "path", "unknown"))


def to_file(path: str) -> logging.Logger:
    """A logger that appends to a file, and opens it again when ``logrotate`` has moved it.

    Raises:
        StorageError: the file cannot be opened.
    """
    logger = logging.getLogger(f"jsfree.access:{path}")
    try:
        handler = WatchedFileHandler(path, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"serve.access_log: {path} cannot be opened ({error.strerror})") from error
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    return logger


def _line(method: str, route: str, status: int, milliseconds: int, record: RequestRecord) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": record.id,
        "method": method,
        "route": route,
        "status": status,
        "ms": milliseconds,
        "key": record.key,
        "models": record.models,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
    }


def _milliseconds(started: float) -> int:
    return round(1000 * (time.perf_counter() - started))
