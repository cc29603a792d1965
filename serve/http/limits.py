"""ASGI middleware that bounds a request before anything looks into it: how many, how large, how long."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jsfree.config import Serve
from serve.http import errors
from serve.http.errors import ApiError


class Guard:
    """Lets a request through to ``app`` with its body read, or refuses it.

    Requests with a body count against ``max_requests``; a body is refused by its announced length, and by what
    has come of it where that is more; all of it, the body's arrival too, has ``request_timeout_s``.
    """

    def __init__(self, app: ASGIApp, settings: Serve) -> None:
        self._app = app
        self._settings = settings
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._settings.max_requests:
            await errors.overloaded("too many requests at once; try again soon").response()(scope, receive, send)
            return
        self._under_way += 1
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                replayed = await self._replayed(scope, receive)
                if replayed is not None:
                    await self._app(scope, replayed, noted)
        except ApiError as error:
            await error.response()(scope, receive, send)
        except TimeoutError:
            if begun:  # the client is slow to take its answer: there is no second one to give
                raise
            await errors.timed_out(self._settings.request_timeout_s).response()(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _replayed(self, scope: Scope, receive: Receive) -> Receive | None:
        """A ``receive`` that gives the body, which was read, and keeps no copy; None when the client has gone."""
        body = await self._body(scope, receive)
        return None if body is None else _replayed(body, receive)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The request's body; None when the client has gone."""
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
    """A ``receive`` that gives the body that was read, then goes on with the real one."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
