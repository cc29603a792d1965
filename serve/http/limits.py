"""ASGI middleware that limits the number, the size and the duration of requests before they are parsed."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jsfree.config import Serve
from serve.http import errors
from serve.http.errors import ApiError


class Guard:
    """Reads the body of a request within the limits and passes both on to ``app``, or refuses the request.

    At most ``max_requests`` requests with a body run at once. A body is refused by its announced or its received
    length. ``request_timeout_s`` limits the whole request, including the arrival of its body.
    """

    def __init__(self, app: ASGIApp, settings: Serve) -> None:
        self._app = app
        self._settings = settings
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        if self._running >= self._settings.max_requests:
            await errors.overloaded("too many requests at once; try again soon").response()(scope, receive, send)
            return
        self._running += 1
        response_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal response_started
            response_started = True
            await send(message)

        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                replayed = await self._replayed(scope, receive)
                if replayed is not None:
                    await self._app(scope, replayed, send_and_note)
        except ApiError as error:
            await error.response()(scope, receive, send)
        except TimeoutError:
            if response_started:  # the client reads it slowly; a second response is impossible
                raise
            await errors.timed_out(self._settings.request_timeout_s).response()(scope, receive, send)
        finally:
            self._running -= 1

    async def _replayed(self, scope: Scope, receive: Receive) -> Receive | None:
        """A ``receive`` that returns the body already read; None if the client has disconnected."""
        body = await self._body(scope, receive)
        return None if body is None else _replayed(body, receive)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The request's body; None if the client has disconnected."""
        limit = self._settings.max_body_bytes
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > limit:
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > limit:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> ApiError:
        limit = self._settings.max_body_bytes
        return errors.invalid(f"the body is larger than {limit} bytes; send a smaller image", None, "too_large", 413)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that returns ``body`` once and then calls the original; it keeps no copy of the body."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
