"""What Ray Serve's HTTP proxies do before they pass a request on: limits, and errors in our format.

Serve calls ``middleware`` in each of its proxies if this variable is set when Ray starts, as ``jsfree serve`` does:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.proxy:middleware

Without it the application enforces its own limits, but Serve's proxy has none on headers and connections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http import errors
from serve.http.context import bounded_id
from serve.http.errors import ApiError
from serve.http.limits import check_headers

if TYPE_CHECKING:
    from collections.abc import MutableMapping

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "serve.proxy:middleware"
REQUEST_ID = "x-request-id"
DROPPED = ("x-request-timeout-seconds", "serve_multiplexed_model_id", "x-serve-session-id")
"""Headers with which a client could change how Serve routes its request, or for how long."""
HIDDEN = "/-/routes"
"""A path that Serve answers itself, without a key."""


def middleware() -> list[Middleware]:
    """Prepare this process, which is about to start Serve's HTTP server, and return middleware for it."""
    from uvicorn.config import HTTP_PROTOCOLS

    protocols: MutableMapping[str, str] = HTTP_PROTOCOLS
    protocols["auto"] = "serve.http.connections:BoundedProtocol"  # Serve does not let its server's class be chosen
    return [Middleware(Proxy)]


class Proxy:
    """Bounds the headers of requests, and replaces Serve's plain-text errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return  # closes WebSockets, which nothing here speaks
        request_id = bounded_id(Headers(scope=scope).get(REQUEST_ID))
        try:
            check_headers(scope)
            if scope["path"] == HIDDEN:
                raise errors.invalid(f"{scope['method']}: {errors.HTTP_TEXT[404]}", None, "not_found", 404)
        except ApiError as error:
            response = error.response()
            response.headers[REQUEST_ID] = request_id
            await response(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        for name in DROPPED:
            del headers[name]
        headers[REQUEST_ID] = request_id
        await self._app(scope, receive, _Errors(send, request_id).send)


class _Errors:
    """Passes a response on, but replaces an error in plain text, which only Serve itself sends."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._replaced: ApiError | None = None

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            is_text = headers.get("content-type", "text/plain").startswith("text/plain")
            if message["status"] >= 400 and is_text:
                self._replaced = _error(message["status"])
                return
            headers[REQUEST_ID] = self._request_id  # once: Serve adds its own to ours
        if self._replaced is None:
            await self._send(message)
        elif not message.get("more_body", False):
            response = self._replaced.response()
            response.headers[REQUEST_ID] = self._request_id
            await self._send(
                {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
            )
            await self._send({"type": "http.response.body", "body": response.body})


def _error(status: int) -> ApiError:
    """Our error for one of Serve's by its status; its text is not passed on."""
    if status == 429:
        return errors.overloaded("too many requests at once; try again soon")
    if status == 404:  # the application has the prefix "/" and answers all paths, so there is none
        return ApiError(503, "the server starts or ends; try again soon", code="unavailable", kind="server_error")
    if status in (408, 504):
        return ApiError(408, "not answered in time; request fewer tokens", code="timeout", kind="timeout_error")
    if status < 500:
        return errors.invalid("the request was refused", None, "bad_request", status)
    return ApiError(503, "the server does not answer; try again soon", code="unavailable", kind="server_error")
