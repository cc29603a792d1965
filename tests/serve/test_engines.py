"""The decoding loop of a replica: concurrent clients, disconnects and failures."""

import asyncio
import threading
import time

import pytest

from jsfree.config import Decoding, Views, with_overrides
from jsfree.decoding import algorithm1
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.loop import DecodingLoop
from jsfree.decoding.requests import Request
from jsfree.decoding.workload import Workload
from jsfree.errors import ServeError
from jsfree.miniworld import world
from serve.engines import Engine
from serve.http.protocol import Answer, Question, Refusal


@pytest.fixture
def engine(finished_run):
    engine = Engine(finished_run.run.config, "miniworld:captioner")
    yield engine
    engine.close()


def question(index: int, **fields) -> Question:
    given = {"prompt": world.PROMPT, "temperature": 1.0, "top_p": 0.9, "max_tokens": 40, "seed": index}
    return Question(image=world.png_bytes(world.scene("development", index)), **{**given, **fields})


def test_eight_concurrent_clients_get_the_same_captions_as_alone(engine):
    questions = [question(index, prompt=world.PROMPT if index % 3 else "Describe.") for index in range(8)]

    async def together() -> list[Answer | Refusal]:
        return await asyncio.gather(*(engine.caption(each) for each in questions))

    async def in_turn() -> list[Answer | Refusal]:
        return [await engine.caption(each) for each in questions]

    answers = asyncio.run(together())
    assert all(isinstance(answer, Answer) for answer in answers)
    assert len({answer.choices for answer in answers}) == 8
    assert asyncio.run(in_turn()) == answers


def test_served_captions_are_the_mean_of_the_configured_views(captioner, finished_run):
    config = with_overrides(finished_run.run.config, ["serve.views.count=3"])
    served = Engine(config, "miniworld:captioner")
    try:
        answer = asyncio.run(served.caption(question(0, temperature=0.0, top_p=1.0)))
    finally:
        served.close()
    pixels = captioner.inputs(world.draw(world.scene("development", 0)))
    decoding = Decoding(temperature=0, max_new_tokens=40, views=Views(count=3))
    expected = algorithm1.decode(captioner, Request("x", pixels, world.PROMPT, 0.0, 0, decoding))
    assert [choice.text for choice in answer.choices] == [expected.text]


class Counting(DualPathEngine):
    """Counts its steps; the first one is slow."""

    calls = 0

    def step(self):
        self.calls += 1
        if self.calls == 1:
            time.sleep(0.5)
        return super().step()


def test_a_client_that_disconnects_frees_its_slots(engine):
    """Abandoned captions are not decoded further: 32 captions of 60 tokens would take hundreds of steps."""
    decoder = Counting(engine._captioner, Workload(4))
    engine._loop.close()
    engine._loop = DecodingLoop(decoder, 60)

    async def go_and_ask() -> Answer | Refusal:
        abandoned = [asyncio.create_task(engine.caption(question(i, choices=8, max_tokens=60))) for i in range(4)]
        await asyncio.sleep(0.2)
        refused = await engine.caption(question(5))
        assert isinstance(refused, Refusal)  # 32 captions are all that it admits
        assert refused.reason == "overloaded"
        for task in abandoned:
            task.cancel()
        await asyncio.gather(*abandoned, return_exceptions=True)
        return await engine.caption(question(5, max_tokens=10))

    assert isinstance(asyncio.run(go_and_ask()), Answer)
    assert decoder.calls <= 12
    assert (engine._admitted, decoder.active) == (0, 0)


class Failing(DualPathEngine):
    """Fails at its third step, like a GPU out of memory."""

    calls = 0

    def step(self):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("out of memory")
        return super().step()


def test_a_loop_that_fails_refuses_waiting_requests_and_is_unhealthy(engine):
    engine._loop.close()
    engine._loop = DecodingLoop(Failing(engine._captioner, Workload(8)), 60)
    engine.check()
    answer = asyncio.run(engine.caption(question(0)))
    assert isinstance(answer, Refusal)
    assert answer.reason == "unavailable"
    assert "memory" not in answer.message
    with pytest.raises(ServeError, match="has ended"):
        engine.check()
    assert isinstance(asyncio.run(engine.caption(question(0))), Refusal)


def test_a_loop_without_progress_is_unhealthy(captioner):
    go_on = threading.Event()

    class Stuck(DualPathEngine):
        def step(self):
            go_on.wait(10)
            return super().step()

    loop = DecodingLoop(Stuck(captioner, Workload(1)), 0.8)
    assert loop.problem() is None

    async def ask_and_wait() -> None:
        picture = world.draw(world.scene("development", 0))
        request = Request("x", captioner.inputs(picture), world.PROMPT, 0.0, 0, Decoding(max_new_tokens=2))
        (future,) = loop.submit([request])
        await asyncio.sleep(1.2)
        assert "not advanced" in loop.problem()
        go_on.set()
        await asyncio.wrap_future(future)
        assert loop.problem() is None

    asyncio.run(ask_and_wait())
    loop.close()
