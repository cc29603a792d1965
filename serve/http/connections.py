"""Limits on connections: the size and the time of headers, the number without a request, and reading of responses.

An ASGI application is called when all headers of a request have arrived, so it cannot limit them. uvicorn has no limits
of its own: it collects headers of any length for any time. ``BoundedProtocol`` is its protocol for HTTP with limits.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.http.errors import invalid
from serve.http.limits import MAX_HEADER_BYTES

HEADER_SECONDS = 10.0
"""Seconds in which the headers of a request must arrive, from its first byte or from the start of the connection."""
WRITE_SECONDS = 60.0
"""Seconds after which a client that does not read its response is disconnected."""
MAX_WAITING_PER_CLIENT = 256
"""Open connections of a client (one address) without a request in progress. One more closes the oldest."""
MAX_WAITING = 768
"""The same of all clients."""


class WaitingConnections:
    """The connections of a server that have no request in progress, from the one that waits longest."""

    def __init__(self) -> None:
        self._all: OrderedDict[BoundedProtocol, str] = OrderedDict()
        self._by_client: dict[str, OrderedDict[BoundedProtocol, None]] = {}

    def add(self, connection: BoundedProtocol, client: str) -> None:
        """Add a connection; it may close another one."""
        self._all[connection] = client
        own = self._by_client.setdefault(client, OrderedDict())
        own[connection] = None
        if len(own) > MAX_WAITING_PER_CLIENT:
            self._close(next(iter(own)))
        if len(self._all) > MAX_WAITING:
            self._close(next(iter(self._all)))

    def remove(self, connection: BoundedProtocol) -> None:
        """Remove a connection, if it is there."""
        client = self._all.pop(connection, None)
        if client is not None:
            own = self._by_client[client]
            del own[connection]
            if not own:
                del self._by_client[client]

    def _close(self, connection: BoundedProtocol) -> None:
        self.remove(connection)
        connection.transport.abort()


_waiting: WeakKeyDictionary[Any, WaitingConnections] = WeakKeyDictionary()
"""By the state of uvicorn's server, which its connections share."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol for HTTP with the limits above."""

    _header_deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None
    _in_headers = False
    _has_begun = False
    """Whether a request has begun in the data that is being parsed."""
    _received = 0
    """Bytes of the headers in progress, without those that came together with their beginning."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._wait()
        self._limit_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release what the connection holds."""
        self._end_wait()
        self._end_write_limit()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; close the connection if the headers exceed their limit."""
        self._has_begun = False
        self._limit_headers()
        super().data_received(data)
        if not self._in_headers or self._has_begun:
            return
        self._received += len(data)
        if self._received > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse_headers()

    def on_message_begin(self) -> None:
        """Note that headers have begun."""
        super().on_message_begin()
        self._in_headers = self._has_begun = True
        self._received = 0

    def on_headers_complete(self) -> None:
        """Start the request."""
        self._in_headers = False
        self._end_wait()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request unless one has been received already."""
        has_next = bool(self.pipeline)
        super().on_response_complete()
        if not has_next and not self.transport.is_closing():
            self._wait()

    def pause_writing(self) -> None:
        """Limit the time for which a client may leave its response unread."""
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """End that limit."""
        super().resume_writing()
        self._end_write_limit()

    def _end_write_limit(self) -> None:
        """Cancel the limit on unread responses."""
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _wait(self) -> None:
        client = self.client[0] if self.client else ""
        _waiting.setdefault(self.server_state, WaitingConnections()).add(self, client)

    def _end_wait(self) -> None:
        if self.server_state in _waiting:
            _waiting[self.server_state].remove(self)
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None

    def _limit_headers(self) -> None:
        """Start the time limit of headers, unless a request is in progress or it has started."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._header_deadline is None:
            self._header_deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _refuse_headers(self) -> None:
        response = invalid(f"the headers are longer than {MAX_HEADER_BYTES} bytes", None, "headers_too_large", 431)
        answer = response.response()
        headers = [*answer.raw_headers, (b"connection", b"close")]
        lines = [b"HTTP/1.1 431 Request Header Fields Too Large", *(b": ".join(header) for header in headers)]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + bytes(answer.body))
        self.transport.close()
