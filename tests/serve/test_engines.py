"""The decoding loop of a replica: concurrent clients, disconnects and failures."""

import asyncio
import threading
import time
from dataclasses import replace

import pytest

from jsfree.config import Decoding, Views, with_overrides
from jsfree.decoding import algorithm1
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.loop import DecodingLoop
from jsfree.decoding.requests import Request
from jsfree.decoding.workload import Workload
from jsfree.errors import ServeError
from jsfree.miniworld import world
from jsfree.models.prompts import IMAGE, Conversation, Turn
from serve.engines.ours import Engine, _Decoder
from serve.http.protocol import Answer, Question, Refusal


@pytest.fixture
def engine(finished_run):
    engine = Engine(finished_run.run.config, "miniworld:captioner")
    yield engine
    engine.close()


def question(index: int, **fields) -> Question:
    image = world.png_bytes(world.scene("development", index))
    given = {"prompt": world.PROMPT, "temperature": 1.0, "top_p": 0.9, "max_tokens": 40, "seed": index, "image": image}
    return Question(**{**given, **fields})


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
    engine._plain.loop.close()
    engine._plain = _Decoder(decoder, DecodingLoop(decoder, 60))

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
    engine._plain.loop.close()
    decoder = Failing(engine._captioner, Workload(8))
    engine._plain = _Decoder(decoder, DecodingLoop(decoder, 60))
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


def oracle(captioner, **fields) -> str:
    """The caption of scene 0 by Algorithm 1, greedily."""
    decoding = Decoding(temperature=0, max_new_tokens=40, views=Views(count=fields.pop("views", 1)))
    pixels = captioner.inputs(world.draw(world.scene("development", 0)))
    given = {"prompt": world.PROMPT, "ratio": 0.0, **fields}
    return algorithm1.decode(captioner, Request("x", pixels, noise_key=0, decoding=decoding, **given)).text


def test_ratios_views_penalties_and_questions_without_an_image_are_those_of_algorithm_1(captioner, engine):
    asked = {
        "a ratio": ({"ratio": 0.8}, {"ratio": 0.8}),
        "views": ({"views": 3}, {"views": 3}),
        "both": ({"views": 2, "ratio": 0.6}, {"views": 2, "ratio": 0.6}),
        "penalties": ({"frequency_penalty": 1.5, "presence_penalty": 0.5},) * 2,
        "no image": ({"image": None}, {"ratio": 1.0}),
    }
    greedy = {"temperature": 0.0, "top_p": 1.0}

    async def together() -> list[Answer | Refusal]:
        questions = [replace(question(0, **greedy), **given) for given, _ in asked.values()]
        return await asyncio.gather(*(engine.caption(each) for each in questions))

    found = [answer.choices[0].text for answer in asyncio.run(together())]
    assert found == [oracle(captioner, **given) for _, given in asked.values()]
    assert len({*found, oracle(captioner)}) > 3


CONVERSATION = Conversation(
    (
        Turn("user", ("Describe image in detail.", IMAGE)),
        Turn("assistant", ("There is a red box.",)),
        Turn("user", ("Describe image in detail.",)),
    )
)


def test_a_conversation_follows_the_models_own_template(captioner, engine):
    greedy = {"temperature": 0.0, "top_p": 1.0}
    answer = asyncio.run(engine.caption(question(0, prompt=CONVERSATION, **greedy)))
    assert answer.choices[0].text == oracle(captioner, prompt=CONVERSATION)
    turns = captioner.processor.apply_chat_template(CONVERSATION.messages(image=True), add_generation_prompt=True)
    expected = captioner.processor(images=world.draw(world.scene("development", 0)), text=turns)["input_ids"][0]
    assert captioner.prompt_ids(CONVERSATION, captioner.blank) == list(expected)
    assert answer.prompt_tokens == len(expected)


def test_a_length_is_clipped_to_what_fits(engine):
    answer = asyncio.run(engine.caption(question(0, max_tokens=100_000, temperature=0.0)))
    assert answer.choices[0].finish == "stop"


def test_turns_that_the_template_does_not_accept_are_refused(engine, monkeypatch):
    template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('secret') }}{% endif %}<image>"
    monkeypatch.setattr(engine._captioner.processor, "chat_template", template)
    turns = Conversation((Turn("system", ("Be kind.",)), Turn("user", (IMAGE, "What is this?"))))
    refusal = asyncio.run(engine.caption(question(0, prompt=turns)))
    assert refusal.reason == "invalid_prompt"
    assert "chat template" in refusal.message
    assert "secret" not in refusal.message
