"""The limits on requests around any application: arrival of the body, number, memory, headers."""

import asyncio

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

from jsfree.config import Serve
from serve.http.limits import MAX_HEADER_BYTES, Guard


class Client:
    """A client of a guarded application that sends the parts of its body when it is asked to."""

    def __init__(self, guard: Guard, **headers: str) -> None:
        self._parts: asyncio.Queue = asyncio.Queue()
        self._sent: list[dict] = []
        names = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "headers": names}
        self.answer = asyncio.create_task(guard(scope, self._parts.get, self._collect))

    async def _collect(self, message: dict) -> None:
        self._sent.append(message)

    def send(self, body: bytes, more: bool = False) -> None:
        self._parts.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def status(self) -> int:
        await self.answer
        return self._sent[0]["status"]

    @property
    def headers(self) -> Headers:
        return Headers(raw=self._sent[0]["headers"])


async def length(scope, receive, send) -> None:
    """An application that answers after 50 ms."""
    message = await receive()
    await asyncio.sleep(0.05)
    await PlainTextResponse(str(len(message["body"])))(scope, receive, send)


def guarded(**limits) -> Guard:
    return Guard(length, Serve(**limits))


def test_a_body_that_does_not_arrive_is_refused_after_its_time_limit():
    async def slow() -> tuple[int, Headers]:
        client = Client(guarded(body_timeout_s=0.1))
        for _ in range(100):  # a byte now and then does not extend the limit
            client.send(b"x", more=True)
            await asyncio.sleep(0.01)
            if client.answer.done():
                break
        return await client.status(), client.headers

    status, headers = asyncio.run(slow())
    assert status == 408
    assert headers["x-should-retry"] == "false"
    assert headers["connection"] == "close"


def test_unfinished_bodies_do_not_stop_service():
    """As many unfinished bodies as would fill the server twice leave its places to others."""

    async def other() -> int:
        guard = guarded(max_requests=4)
        waiting = [Client(guard) for _ in range(8)]
        for client in waiting:
            client.send(b"{", more=True)
        await asyncio.sleep(0)
        client = Client(guard)
        client.send(b"{}")
        status = await client.status()
        for each in waiting:
            each.send(b"}")
        return status

    assert asyncio.run(other()) == 200


def test_a_flood_of_unfinished_bodies_is_limited():
    async def flood() -> list[int]:
        guard = guarded(max_requests=2)
        clients = [Client(guard) for _ in range(20)]
        await asyncio.sleep(0)
        for client in clients:
            client.send(b"{}")
        return [await client.status() for client in clients]

    statuses = asyncio.run(flood())
    assert statuses.count(200) == 2  # two run; 14 had arrived too late for a place, four were refused at once
    assert set(statuses) == {200, 429}


def test_bodies_are_limited_together_and_release_their_memory():
    async def four() -> tuple[list[int], int]:
        guard = guarded(max_body_memory=1000)
        clients = [Client(guard) for _ in range(4)]
        for client in clients:
            client.send(bytes(300), more=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for client in clients[:3]:
            client.send(b"")
        statuses = [await client.status() for client in clients]
        later = Client(guard)
        later.send(bytes(1000))
        return statuses, await later.status()

    statuses, later = asyncio.run(four())
    assert statuses == [200, 200, 200, 429]
    assert later == 200


def test_large_bodies_leave_memory_for_small_ones():
    """Of five bodies of 2 MB at a limit of 10 MB the fifth is refused, and a small one is not."""

    async def six() -> list[int]:
        guard = guarded(max_body_memory=10_000_000, max_image_bytes=2_000_000)
        clients = [Client(guard) for _ in range(5)]
        for client in clients:
            client.send(bytes(2_000_000), more=True)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        small = Client(guard)
        small.send(bytes(100_000))
        answered = await small.status()
        for client in clients[:4]:
            client.send(b"")
        return [*[await client.status() for client in clients], answered]

    assert asyncio.run(six()) == [200, 200, 200, 200, 429, 200]


def test_a_client_that_disconnects_while_sending_gets_no_answer():
    async def gone() -> list[dict]:
        client = Client(guarded())
        client.send(b"{", more=True)
        client._parts.put_nowait({"type": "http.disconnect"})
        await client.answer
        return client._sent

    assert asyncio.run(gone()) == []


def test_an_announced_length_is_refused_before_the_body():
    async def announced(content_length: str) -> int:
        client = Client(guarded(), content_length=content_length)
        client.send(b"{}")
        return await client.status()

    limit = Serve().max_body_bytes
    assert asyncio.run(announced(str(limit + 1))) == 413
    assert asyncio.run(announced("9" * 5000)) == 413
    assert asyncio.run(announced(str(limit))) == 200


def test_long_headers_are_refused():
    async def with_header(length: int) -> int:
        client = Client(guarded(), user_agent="x" * length)
        client.send(b"{}")
        return await client.status()

    assert asyncio.run(with_header(MAX_HEADER_BYTES)) == 431
    assert asyncio.run(with_header(MAX_HEADER_BYTES - 100)) == 200
