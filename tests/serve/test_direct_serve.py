"""Streams of a real Ray Serve whose replicas send their parts past Ray, with a stand-in for the model."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import pytest
import ray
from ray import serve as ray_serve

from serve.direct import Address, PartReceiver, PartSender
from serve.http.protocol import Delta, Part, Refusal, Started
from serve.replicas import Replicas

pytestmark = pytest.mark.slow
WORDS, SECONDS = 20, 0.02


@ray_serve.deployment(name="after", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Model:
    """Streams as many words as it is asked for."""

    def __init__(self) -> None:
        self._sender = PartSender()
        self._running = 0

    async def _words(self, count: int) -> AsyncGenerator[Part, None]:
        self._running += 1
        try:
            yield Started(9)
            for number in range(count):
                await asyncio.sleep(SECONDS)
                yield (Delta(0, f"word{number} ", (), number + 1),)
        finally:
            self._running -= 1

    async def stream(self, count: int, address: Address | None = None) -> AsyncGenerator[Part, None]:
        async with aclosing(self._sender.unsent(self._words(count), address)) as parts:
            async for part in parts:
                yield part

    async def state(self) -> tuple[int, int]:
        """Its process, and how many streams run."""
        return os.getpid(), self._running


@ray_serve.deployment(name="http", ray_actor_options={"num_cpus": 0})
class Reader:
    """Reads streams as the HTTP application does."""

    def __init__(self, handle) -> None:
        self._receiver = PartReceiver()
        self._replicas = Replicas(handle, self._receiver)

    async def read(self, count: int, leave_after: int | None = None) -> list[Part]:
        found: list[Part] = []
        async with aclosing(self._replicas.stream(count)) as parts:
            async for part in parts:
                found.append(part)
                if len(found) == leave_after:
                    break
        return found

    async def connections(self) -> int:
        """Connections of replicas."""
        return len(self._receiver._connections)


@pytest.fixture(scope="module")
def handles() -> Iterator[tuple]:
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        reader = ray_serve.run(Reader.bind(Model.bind()), name="direct", route_prefix=None)
        yield reader, ray_serve.get_deployment_handle("after", "direct")
    finally:
        ray_serve.shutdown()
        if started:
            ray.shutdown()


def text(parts: list[Part]) -> str:
    return "".join(delta.text for part in parts if isinstance(part, tuple) for delta in part)


def test_streams_come_past_ray_and_those_that_are_left_end(handles):
    reader, model = handles
    responses = [reader.read.remote(WORDS) for _ in range(16)]
    for response in responses:
        parts = response.result(timeout_s=120)
        assert parts[0] == Started(9)
        assert text(parts) == "".join(f"word{number} " for number in range(WORDS))
    assert reader.connections.remote().result(timeout_s=60) == 1
    assert len(reader.read.remote(10_000, leave_after=3).result(timeout_s=60)) == 3
    for _ in range(50):
        if model.state.remote().result(timeout_s=60)[1] == 0:
            return
    pytest.fail("the stream goes on after its reader has left")


def test_the_death_of_a_replica_ends_its_streams_and_others_are_served_again(handles):
    reader, model = handles
    response = reader.read.remote(10_000)
    while model.state.remote().result(timeout_s=60)[1] == 0:
        pass
    os.kill(model.state.remote().result(timeout_s=60)[0], signal.SIGKILL)
    *sent, last = response.result(timeout_s=60)
    assert isinstance(last, Refusal)
    assert last.reason == "unavailable"
    assert sent[0] == Started(9)
    assert text(reader.read.remote(3).result(timeout_s=120)) == "word0 word1 word2 "
