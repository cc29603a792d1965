"""ASGI middleware that limits the number, the size and the duration of requests before they are parsed."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jsfree.config import Serve
from serve.http import context, errors
from serve.http.bodies import LARGE
from serve.http.errors import ApiError

ARRIVING = 8
"""Bodies that may be arriving at once, as a multiple of ``max_requests``: clients on slow connections cost little."""
LARGE_SHARE = 0.9
"""Fraction of ``max_body_memory`` for all bodies while a large one arrives: large ones leave space for others."""
MAX_HEADER_BYTES = 16_384
"""Maximum total length of the names and values of a request's headers, and of its URL."""


class Body:
    """The body of a request as it arrives."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.length = 0
        self.is_complete = False

    def add(self, part: bytes, is_last: bool) -> None:
        """Append a part."""
        self._parts.append(part)
        self.length += len(part)
        self.is_complete = is_last

    def replayed(self, receive: Receive) -> Receive:
        """A ``receive`` that returns the body once, without keeping a copy of it, and then calls the original."""

        async def replay() -> Message:
            if not self._parts:
                return await receive()
            content = b"".join(self._parts)
            self._parts.clear()
            return {"type": "http.request", "body": content, "more_body": False}

        return replay


class Guard:
    """Reads the body of a request within the limits and passes both on to ``app``, or refuses the request.

    A body is refused by its announced or its received length; it must arrive within ``body_timeout_s``, and all bodies
    together take at most ``max_body_memory`` bytes. At most ``max_requests`` requests whose body has arrived run at
    once, each for at most ``request_timeout_s``.
    """

    def __init__(self, app: ASGIApp, settings: Serve) -> None:
        self._app = app
        self._settings = settings
        self._arriving = 0
        self._running = 0
        self._held = 0
        """Bytes of the bodies of all requests in progress."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = Body()
        try:
            check_headers(scope)
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self._app(scope, receive, send)
            elif await self._arrives(body, scope, receive):
                await self._run(scope, body.replayed(receive), send)
        except ApiError as error:
            response = error.response()
            if not body.is_complete:
                response.headers["connection"] = "close"  # otherwise the server would read the rest of the body
            await response(scope, receive, send)
        finally:
            self._held -= body.length

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application within the limits of number and time."""
        self._require_free_place()
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        self._running += 1
        context.current().started = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                await self._app(scope, receive, send_and_note)
        except TimeoutError:
            if started:  # the client reads it slowly; a second response is impossible
                raise
            raise errors.timed_out(self._settings.request_timeout_s) from None
        finally:
            self._running -= 1

    async def _arrives(self, body: Body, scope: Scope, receive: Receive) -> bool:
        """Read a request's body into ``body``; False if the client disconnects."""
        self._require_free_place()
        if self._arriving >= ARRIVING * self._settings.max_requests:
            raise errors.overloaded("too many requests arrive at once; try again soon")
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > self._settings.max_body_bytes:
            raise self._too_large()
        self._arriving += 1
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                return await self._read(body, receive)
        except TimeoutError:
            message = f"the body did not arrive within {self._settings.body_timeout_s:g} s"
            raise ApiError(408, message, code="timeout", kind="timeout_error") from None
        finally:
            self._arriving -= 1

    async def _read(self, body: Body, receive: Receive) -> bool:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            if body.length + len(part) > self._settings.max_body_bytes:
                raise self._too_large()
            available = self._settings.max_body_memory
            if body.length + len(part) > LARGE:
                available = int(LARGE_SHARE * available)
            if self._held + len(part) > available:
                raise errors.overloaded("too many large requests at once; try again soon")
            self._held += len(part)
            body.add(part, is_last=not message.get("more_body", False))
            if body.is_complete:
                return True

    def _require_free_place(self) -> None:
        if self._running >= self._settings.max_requests:
            raise errors.overloaded("too many requests at once; try again soon")

    def _too_large(self) -> ApiError:
        limit = self._settings.max_body_bytes
        return errors.invalid(f"the body is larger than {limit} bytes; send a smaller image", None, "too_large", 413)


def check_headers(scope: Scope) -> None:
    """Check the length of a request's URL and headers.

    Raises:
        ApiError: they are too long.
    """
    length = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
    length += sum(len(name) + len(value) for name, value in scope["headers"])
    if length > MAX_HEADER_BYTES:
        raise errors.invalid(
            f"the headers are longer than {MAX_HEADER_BYTES} bytes; send fewer", None, "headers_too_large", 431
        )
