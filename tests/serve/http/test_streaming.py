"""Streamed answers over real engines in this process: the same text as without a stream, in small parts."""

import asyncio
import json
import time

import pytest
from starlette.testclient import TestClient

from jsfree.config import Serve
from jsfree.miniworld import world
from serve.app import served_models
from serve.http import routes as api
from serve.http.protocol import Delta, Refusal, Started
from tests.support import asking
from tests.support.asking import chat, scene_url

SAMPLED = {"temperature": 1, "max_tokens": 60, "seed": 3}


def events(client, path: str = "/v1/chat/completions", **body) -> list:
    """The events of a stream; the last must be its end."""
    answer = client.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def spoken(chunks: list, index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def plain(client, **body) -> dict:
    return client.post("/v1/chat/completions", json=body).json()


def test_streamed_choices_equal_those_without_a_stream(client):
    body = chat(model="after", **SAMPLED, n=3)
    chunks, answer = events(client, **body), plain(client, **body)
    for index, choice in enumerate(answer["choices"]):
        own = [each for chunk in chunks for each in chunk["choices"] if each["index"] == index]
        assert spoken(chunks, index) == choice["message"]["content"]
        assert own[0]["delta"]["role"] == "assistant"
        assert [each["finish_reason"] for each in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        assert len(own) > 4  # the text comes in parts
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_the_usage_comes_last_if_it_is_asked_for(client):
    body = chat(model="before", **SAMPLED)
    *chunks, last = events(client, **body, stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]) == ([], plain(client, **body)["usage"])
    assert {chunk["usage"] for chunk in chunks} == {None}


def test_nothing_of_a_stop_string_is_streamed(client):
    body = chat(model="before", temperature=0, max_tokens=90)
    words = plain(client, **body)["choices"][0]["message"]["content"]
    for stop in (words[20:24], words[10:30], words[:3]):
        chunks = events(client, **body, stop=[stop, "zebra"])
        assert spoken(chunks) == plain(client, **body, stop=[stop, "zebra"])["choices"][0]["message"]["content"]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_logprobs_of_a_stream_are_those_without(client):
    body = chat(model="before", **SAMPLED, logprobs=True, top_logprobs=2)
    chunks, answer = events(client, **body), plain(client, **body)
    streamed = [each for chunk in chunks for each in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    whole = answer["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in streamed] == [each["token"] for each in whole]
    assert [each["logprob"] for each in streamed] == pytest.approx([each["logprob"] for each in whole], abs=1e-5)
    content = b"".join(bytes(each["bytes"]) for each in whole).decode()
    assert content.strip() == answer["choices"][0]["message"]["content"]
    assert all(each["logprob"] <= each["top_logprobs"][0]["logprob"] <= 0 for each in whole)
    assert {len(each["top_logprobs"]) for each in whole} == {2}


def test_a_refusal_before_the_first_token_is_an_ordinary_error(client):
    for body in (chat(model="gpt-4o"), chat(messages=asking.user(asking.text("a<pad>b")))):
        answer = client.post("/v1/chat/completions", json={**body, "stream": True})
        assert answer.status_code in (400, 404)
        assert answer.headers["content-type"] == "application/json"
    both = {"image": scene_url(), "prompt": "a<pad>b", "stream": True}
    assert client.post("/v1/compare", json=both).status_code == 400


class Dying:
    """A model that is lost after its first words, or whose next word does not come."""

    def __init__(self, *, hangs: bool = False, waits: float = 0.0) -> None:
        self.hangs, self.waits, self.closed = hangs, waits, False

    async def stream(self, question):
        try:
            await asyncio.sleep(self.waits)
            yield Started(3)
            yield (Delta(0, "A red", (), 2),)
            if self.hangs:
                await asyncio.sleep(60)
            yield Refusal("unavailable", "the model has stopped")
        finally:
            self.closed = True


@pytest.mark.parametrize(
    ("hangs", "waits", "code"), [(False, 0.0, "unavailable"), (True, 0.0, "timeout"), (True, 0.3, "timeout")]
)
def test_an_error_in_mid_stream_is_the_last_event(finished_run, hangs, waits, code):
    dying = Dying(hangs=hangs, waits=waits)
    settings = Serve.model_validate({**asking.SERVED, "request_timeout_s": 0.5})
    app = api.create_app(served_models(finished_run.run), {"before": dying}, settings, world.PROMPT)
    with TestClient(app) as client:
        *chunks, last = events(client, **chat())
    assert spoken(chunks) == "A red"
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert last["error"]["code"] == code
    assert dying.closed


def test_a_comparison_streams_the_models_side_by_side(client):
    body = {"image": scene_url(1), "temperature": 1, "seed": 5, "max_tokens": 40}
    first, *deltas, last = events(client, "/v1/compare", **body)
    assert (first["object"], first["seed"]) == ("comparison.start", 5)
    assert [model["model"] for model in first["models"]] == ["m0", "m1"]
    whole = client.post("/v1/compare", json=body).json()
    assert last == whole | {"created": last["created"]}
    for caption in whole["captions"]:
        own = [event["delta"] for event in deltas if event["model"] == caption["model"]]
        assert "".join(own) == caption["text"]
    models = [event["model"] for event in deltas]
    assert models != sorted(models)  # they take turns


def test_a_client_that_leaves_frees_its_slots(engines):
    """A stream of 400 tokens that is closed after its first part is not decoded further."""
    from serve.http.protocol import Question

    engine = engines["after"]
    question = Question(world.png_bytes(world.scene("development", 0)), world.PROMPT, 1.0, 1.0, 400, 0, choices=4)

    async def leave() -> None:
        stream = engine.stream(question)
        async for part in stream:
            if not isinstance(part, Started):
                break
        await stream.aclose()
        until = time.monotonic() + 5
        while engine._plain.engine.active:
            assert time.monotonic() < until
            await asyncio.sleep(0.01)

    before = engine._plain.engine.tokens
    asyncio.run(leave())
    assert engine._admitted == 0
    assert engine._plain.engine.tokens - before < 4 * 60
