"""Parts of streams past Ray: through a Unix socket, or through the call if the socket cannot be reached."""

import asyncio
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import uvloop

from serve import direct
from serve.direct import Address, LostPartsError, PartReceiver, PartSender
from serve.http.protocol import Delta, Part, Started


def delta(number: int) -> Part:
    return (Delta(0, f"word{number} ", (), number),)


PARTS = [Started(9), *(delta(number) for number in range(50))]


class Replica:
    """A replica whose streams have given parts."""

    def __init__(self, parts: list[Part] = PARTS) -> None:
        self.parts, self.sender = parts, PartSender()
        self.addresses: list[Address] = []
        self.yielded: list[Part] = []

    async def _decoded(self) -> AsyncGenerator[Part, None]:
        for part in self.parts:
            await asyncio.sleep(0)
            yield part

    async def stream(self, address: Address | None) -> AsyncGenerator[Part, None]:
        assert address is not None
        self.addresses.append(address)
        async for part in self.sender.unsent(self._decoded(), address):
            self.yielded.append(part)
            yield part


Work = Callable[[PartReceiver], Awaitable[None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request) -> Callable[..., None]:
    """Runs a function with a receiver, in asyncio's own event loop and in that of Serve."""

    async def work_and_close(work: Work, senders: tuple[PartSender, ...]) -> None:
        receiver = PartReceiver()
        try:
            async with asyncio.timeout(30):
                await work(receiver)
        finally:
            receiver.close()
            for sender in senders:
                sender.close()

    def run_work(work: Work, *senders: PartSender) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(work_and_close(work, senders))

    return run_work


async def read(receiver: PartReceiver, call) -> list[Part]:
    return [part async for part in receiver.stream(call)]


def test_parts_of_several_streams_come_through_one_socket_in_order(run):
    replica = Replica()

    async def work(receiver: PartReceiver) -> None:
        assert await asyncio.gather(*(read(receiver, replica.stream) for _ in range(8))) == [PARTS] * 8

    run(work, replica.sender)
    assert replica.yielded == []
    assert len({address.path for address in replica.addresses}) == 1
    assert len({address.number for address in replica.addresses}) == 8


def test_a_replica_on_another_node_sends_its_parts_through_the_call(run, tmp_path):
    replica = Replica()

    async def work(receiver: PartReceiver) -> None:
        elsewhere = Address(str(tmp_path / "parts.sock"), 0)
        assert await read(receiver, lambda _: replica.stream(elsewhere)) == PARTS

    run(work, replica.sender)
    assert replica.yielded == PARTS


def test_without_a_socket_parts_come_through_the_call(run, monkeypatch):
    monkeypatch.setattr(direct, "SOCKET", "x" * 200)  # longer than a socket's path may be
    replica = Replica()

    async def stream(address: Address | None) -> AsyncGenerator[Part, None]:
        assert address is None
        async for part in replica.sender.unsent(replica._decoded(), address):
            yield part

    async def work(receiver: PartReceiver) -> None:
        assert await read(receiver, stream) == PARTS

    run(work, replica.sender)


def test_a_reader_that_leaves_does_not_disturb_other_streams(run):
    replica = Replica()

    async def work(receiver: PartReceiver) -> None:
        async with aclosing(receiver.stream(replica.stream)) as left:
            assert await anext(left) == PARTS[0]
        assert await read(receiver, replica.stream) == PARTS

    run(work, replica.sender)


def test_an_error_of_the_call_is_raised_after_the_parts_before_it(run):
    async def failing(_: Address | None) -> AsyncGenerator[Part, None]:
        yield PARTS[0]
        raise ZeroDivisionError

    async def work(receiver: PartReceiver) -> None:
        stream = receiver.stream(failing)
        assert await anext(stream) == PARTS[0]
        with pytest.raises(ZeroDivisionError):
            await anext(stream)

    run(work)


def test_a_call_that_its_replica_cancels_is_an_error_and_not_waited_for(run):
    async def cancelled(_: Address | None) -> AsyncGenerator[Part, None]:
        yield PARTS[0]
        raise asyncio.CancelledError

    async def work(receiver: PartReceiver) -> None:
        stream = receiver.stream(cancelled)
        assert await anext(stream) == PARTS[0]
        with pytest.raises(LostPartsError):
            await anext(stream)

    run(work)


def test_a_stream_whose_end_does_not_arrive_is_an_error(run, monkeypatch):
    monkeypatch.setattr(direct, "END_SECONDS", 0.05)

    async def silent(_: Address | None) -> AsyncGenerator[Part, None]:
        for part in ():
            yield part

    async def work(receiver: PartReceiver) -> None:
        with pytest.raises(LostPartsError):
            await read(receiver, silent)

    run(work)


def test_a_closed_connection_ends_a_stream_and_the_next_one_connects_again(run):
    replica = Replica()

    async def work(receiver: PartReceiver) -> None:
        await read(receiver, replica.stream)
        replica.sender._connections[replica.addresses[0].path]._transport.abort()
        assert await read(receiver, replica.stream) == PARTS

    run(work, replica.sender)
    assert replica.yielded == []


def test_only_the_owner_can_reach_the_socket_and_it_is_removed(run):
    replica = Replica()
    paths = []

    async def work(receiver: PartReceiver) -> None:
        await read(receiver, replica.stream)
        paths.append(Path(replica.addresses[0].path))
        assert stat.S_IMODE(paths[0].parent.stat().st_mode) == 0o700

    run(work, replica.sender)
    assert not paths[0].parent.exists()
