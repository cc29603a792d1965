"""The parts of streamed captions, sent from a replica to the HTTP server past Ray.

Each message of a stream through Serve costs the replica about half a millisecond of CPU time and the HTTP server
another half, which is more than decoding its tokens costs. On one node, parts of all streams go through a Unix socket
instead, those that are ready at the same time in one write. The call through Serve's handle stays open until the stream
ends: Serve chooses the replica, counts the stream for autoscaling, waits for it before the replica ends, and reports
the death of the replica. A replica that cannot reach the socket, because it is on another node, sends its parts through
Serve.

The socket is in a folder that only its owner may enter, as are the processes that use it, so nothing else connects.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from serve.http.protocol import Part

log = logging.getLogger(__name__)
SOCKET = "parts.sock"
LENGTH_BYTES = 4
"""Bytes of the length before each frame, which is a pickled list of streams' numbers and their next parts."""
END_SECONDS = 5.0
"""Seconds in which the end of a stream arrives after its call has ended, unless the connection is lost."""


@dataclass(frozen=True)
class Address:
    """Where the parts of a stream are awaited."""

    path: str
    """Path of a Unix socket."""
    number: int
    """Number of the stream among those of the socket."""


class LostPartsError(ConnectionError):
    """The connection between a replica and the HTTP server has ended before a stream."""


class PartSender:
    """Sends parts of streams to HTTP servers on this node; belongs to one event loop."""

    def __init__(self) -> None:
        self._connections: dict[str, _Sending] = {}

    async def unsent(self, parts: AsyncGenerator[Part, None], address: Address | None) -> AsyncGenerator[Part, None]:
        """Send the parts of a stream to an address, or yield them if it cannot be reached.

        Raises:
            LostPartsError: the connection has ended.
        """
        async with aclosing(parts):
            connection = None if address is None else await self._connection(address.path)
            if connection is None or address is None:
                async for part in parts:
                    yield part
                return
            async for part in parts:
                connection.send(address.number, part)
            connection.send(address.number, None)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()

    async def _connection(self, path: str) -> _Sending | None:
        """The connection to a socket; None if it is not on this node."""
        connection = self._connections.get(path)
        if connection is None or connection.is_lost:
            try:
                _, connection = await asyncio.get_running_loop().create_unix_connection(_Sending, path)
            except OSError:
                return None
            self._connections[path] = connection
        return connection


class _Sending(asyncio.Protocol):
    """The replica's end of a connection."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, Part | None]] = []
        self._transport: asyncio.WriteTransport | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the other end is closed."""
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is not a subclass

    def send(self, number: int, part: Part | None) -> None:
        """Send the next part of a stream, or None for its end.

        Raises:
            LostPartsError: the other end is closed.
        """
        if self.is_lost:
            raise LostPartsError("the HTTP server has closed its connection")
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pending.append((number, part))

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        """Write what all streams have sent since the last call."""
        content = pickle.dumps(self._pending, pickle.HIGHEST_PROTOCOL)
        self._pending.clear()
        if self._transport is not None:
            self._transport.write(len(content).to_bytes(LENGTH_BYTES) + content)


@dataclass(frozen=True)
class _End:
    """The end of a stream: with an error, or after its last part."""

    error: Exception | None = None


class PartReceiver:
    """Receives the parts of streams through a Unix socket, or through their calls; belongs to one event loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._streams: dict[int, asyncio.Queue[Part | _End]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._server: asyncio.Server | None = None
        self._path: str | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._connections: set[asyncio.BaseTransport] = set()
        self._starting = asyncio.Lock()
        self._has_started = False

    async def stream(
        self, call: Callable[[Address | None], AsyncIterable[Part]], *, direct: bool = True
    ) -> AsyncGenerator[Part, None]:
        """The parts of a stream.

        Args:
            call: asks for a stream whose parts are sent to an address, or else by the call itself.
            direct: whether to give it an address.

        Raises:
            LostPartsError: the connection has ended before the stream.
            Exception: the call has raised it.
        """
        if direct:
            await self._start()
        number = next(self._numbers)
        address = Address(self._path, number) if direct and self._path is not None else None
        queue = self._streams[number] = asyncio.Queue()
        try:
            task = asyncio.create_task(self._pass_on(call(address), queue))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
            while not isinstance(part := await queue.get(), _End):
                yield part
            if part.error is not None:
                raise part.error
        finally:
            del self._streams[number]

    def close(self) -> None:
        """End the server with its connections, and remove its socket."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.close()
        if self._folder is not None:
            self._folder.cleanup()

    def receive(self, number: int, part: Part | None) -> None:
        """Take the next part of a stream; those that have ended here are ignored."""
        queue = self._streams.get(number)
        if queue is not None:
            queue.put_nowait(_End() if part is None else part)

    def connected(self, connection: asyncio.BaseTransport) -> None:
        """Keep a connection of a replica, to close it."""
        self._connections.add(connection)

    def disconnected(self, connection: asyncio.BaseTransport) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    async def _pass_on(self, parts: AsyncIterable[Part], queue: asyncio.Queue[Part | _End]) -> None:
        """Pass on what a call returns; if that is nothing, all parts come through the socket."""
        has_parts = False
        try:
            async for part in parts:
                has_parts = True
                queue.put_nowait(part)
        except asyncio.CancelledError:  # also Serve's error for a call that a replica has cancelled
            queue.put_nowait(_End(LostPartsError("the call has been cancelled")))
            raise
        except Exception as error:  # noqa: BLE001 - raised again by the stream
            queue.put_nowait(_End(error))
            return
        lost = _End(LostPartsError("the end of a stream has not arrived"))
        if has_parts:
            queue.put_nowait(_End())
        else:
            asyncio.get_running_loop().call_later(END_SECONDS, queue.put_nowait, lost)

    async def _start(self) -> None:
        """Listen, unless that has been tried; without a socket, parts come through Serve."""
        async with self._starting:
            if self._has_started:
                return
            self._has_started = True
            self._folder = tempfile.TemporaryDirectory(prefix="jsfree-", ignore_cleanup_errors=True)
            path = str(Path(self._folder.name) / SOCKET)
            try:
                self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Receiving(self), path)
            except OSError as error:
                log.warning("streams are sent through Ray, because %s cannot be opened: %s", path, error)
            else:
                self._path = path


class _Receiving(asyncio.Protocol):
    """The HTTP server's end of a connection."""

    def __init__(self, receiver: PartReceiver) -> None:
        self._receiver = receiver
        self._received = bytearray()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection."""
        self._transport = transport
        self._receiver.connected(transport)

    def connection_lost(self, _: Exception | None) -> None:
        """Remove the connection."""
        if self._transport is not None:
            self._receiver.disconnected(self._transport)

    def data_received(self, data: bytes) -> None:
        """Pass on the parts of all frames that have arrived."""
        self._received += data
        while len(self._received) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES])
            if len(self._received) < end:
                return
            frame = pickle.loads(bytes(self._received[LENGTH_BYTES:end]))
            del self._received[:end]
            for number, part in frame:
                self._receiver.receive(number, part)
