"""Limits of connections, with real sockets and uvicorn: headers, half-open connections, unread responses."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from serve.http import connections
from serve.http.connections import BoundedProtocol
from serve.http.limits import MAX_HEADER_BYTES

LARGE = 64_000_000  # more than the buffers of a connection
OPENED: list[asyncio.StreamWriter] = []
"""Connections of the test that runs, which are closed at its end."""
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer(scope, receive, send) -> None:
    """An application that returns the request's body, and 64 MB for ``/large``."""
    body = (await receive()).get("body", b"")
    await PlainTextResponse(bytes(LARGE) if scope["path"] == "/large" else body or b"ok")(scope, receive, send)


def serve(test: Callable[[int], Awaitable[None]]) -> None:
    """Run a test against a server with its port."""

    async def run() -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        config = uvicorn.Config(answer, http=BoundedProtocol, lifespan="off", log_config=None, timeout_keep_alive=5)
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None
        task = asyncio.create_task(server.serve([listener]))
        try:
            await test(listener.getsockname()[1])
        finally:
            for writer in OPENED:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
            OPENED.clear()
            server.should_exit = server.force_exit = True
            await task

    asyncio.run(asyncio.wait_for(run(), 60))


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    OPENED.append(writer)
    return reader, writer


async def exchanged(port: int, content: bytes) -> bytes:
    """Everything that the server sends for some bytes, until it closes the connection or answers in full."""
    reader, writer = await connect(port)
    writer.write(content)
    try:
        return await reader.read(100_000)
    except ConnectionError:
        return b""


async def is_closed(reader: asyncio.StreamReader, seconds: float) -> bool:
    with contextlib.suppress(ConnectionError):
        try:
            return await asyncio.wait_for(reader.read(1), seconds) == b""
        except TimeoutError:
            return False
    return True


def test_requests_and_kept_connections_work_as_usual():
    async def test(port: int) -> None:
        reader, writer = await connect(port)
        for body in (b"a", b"b" * 300_000, b"c"):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"200 OK" in head
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert body.startswith(await reader.readexactly(length))
        writer.write(REQUEST + REQUEST)  # pipelined
        for _ in range(2):
            await reader.readuntil(b"ok")

    serve(test)


def test_headers_that_do_not_arrive_close_the_connection(monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)

    async def test(port: int) -> None:
        reader, writer = await connect(port)
        slow = asyncio.create_task(is_closed(reader, 10))
        for byte in REQUEST:  # a byte now and then does not extend the limit
            if slow.done() or writer.is_closing():
                break
            with contextlib.suppress(ConnectionError):
                writer.write(bytes([byte]))
            await asyncio.sleep(0.1)
        assert await slow
        silent, _ = await connect(port)
        assert await is_closed(silent, 10)
        # The second request of a kept connection has the same limit.
        reader, writer = await connect(port)
        writer.write(REQUEST)
        await reader.readuntil(b"ok")
        writer.write(REQUEST[:5])
        assert await is_closed(reader, 10)

    serve(test)


@pytest.mark.parametrize("header", [b"X: " + b"a" * 900_000, b"".join(b"X-%d: a\r\n" % i for i in range(90_000))])
def test_long_headers_are_refused_before_they_have_arrived(header):
    async def test(port: int) -> None:
        sent = await exchanged(port, b"GET / HTTP/1.1\r\nHost: x\r\n" + header)
        assert sent == b"" or sent.startswith(b"HTTP/1.1 431 ")
        if sent:
            assert json.loads(sent.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"
        assert b"ok" in await exchanged(port, REQUEST)

    assert len(header) > MAX_HEADER_BYTES
    serve(test)


def test_half_open_connections_do_not_stop_service(monkeypatch):
    monkeypatch.setattr(connections, "MAX_WAITING_PER_CLIENT", 64)

    async def test(port: int) -> None:
        opened = [await connect(port) for _ in range(256)]
        for _, writer in opened:
            writer.write(REQUEST[:9])
        assert b"ok" in await exchanged(port, REQUEST)
        closed = await asyncio.gather(*(is_closed(reader, 1) for reader, _ in opened))
        assert closed == [True] * 193 + [False] * 63  # the oldest are closed, and one for the request above

    serve(test)


def test_all_clients_together_are_limited(monkeypatch):
    monkeypatch.setattr(connections, "MAX_WAITING", 4)

    async def test(port: int) -> None:
        opened = [await connect(port) for _ in range(6)]
        assert await is_closed(opened[0][0], 5)
        assert not await is_closed(opened[5][0], 0.2)

    serve(test)


def test_a_client_that_does_not_read_its_response_is_disconnected(monkeypatch):
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.3)

    async def test(port: int) -> None:
        client = socket.create_connection(("127.0.0.1", port))
        client.setblocking(False)
        client.sendall(REQUEST.replace(b"/ ", b"/large "))
        await asyncio.sleep(1.5)
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 2**20), 5):
                received += len(part)
        client.close()
        assert received < LARGE

    serve(test)
