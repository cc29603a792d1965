"""Conversations and decoding settings of chat requests over a real engine, against Algorithm 1."""

import pytest

from jsfree.config import Decoding, Views
from jsfree.decoding import algorithm1
from jsfree.decoding.requests import Request
from jsfree.miniworld import world
from jsfree.models.prompts import IMAGE, Conversation, Turn
from tests.support.asking import chat, image, text, user


def ask(client, **fields) -> dict:
    answer = client.post("/v1/chat/completions", json=chat(**{"max_tokens": 40, **fields}))
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def oracle(finished_run):
    """The greedy caption of scene 0 by m0 and Algorithm 1."""

    def decode(prompt=world.PROMPT, ratio: float = 0.0, views: int = 1, **fields) -> str:
        pixels = finished_run.before.inputs(world.draw(world.scene("development", 0)))
        decoding = Decoding(temperature=0, max_new_tokens=40, views=Views(count=views))
        request = Request("x", pixels, prompt, ratio, 0, decoding, **fields)
        return algorithm1.decode(finished_run.before, request).text

    return decode


def test_earlier_turns_and_a_system_message_reach_the_models_template(client, oracle):
    messages = [
        {"role": "developer", "content": "Be brief."},
        *user(image(), text("What is this?")),
        {"role": "assistant", "content": "A scene.", "refusal": None, "tool_calls": None},
        *user(text()),
    ]
    conversation = Conversation(
        (
            Turn("system", ("Be brief.",)),
            Turn("user", (IMAGE, "What is this?")),
            Turn("assistant", ("A scene.",)),
            Turn("user", (world.PROMPT,)),
        )
    )
    assert said(ask(client, messages=messages)) == oracle(conversation)


def test_the_image_may_be_first_last_or_between_texts(client, oracle):
    first = said(ask(client, messages=user(image(), text())))
    assert first == oracle()
    last = Conversation((Turn("user", (world.PROMPT, IMAGE)),))
    assert said(ask(client, messages=user(text(), image()))) == oracle(last)
    between = Conversation((Turn("user", ("Look:\nnow.", IMAGE, world.PROMPT)),))
    assert said(ask(client, messages=user(text("Look:"), text("now."), image(), text()))) == oracle(between)


def test_a_text_alone_is_answered_by_the_prompt_without_image(client, oracle, finished_run):
    answer = ask(client, messages=[{"role": "user", "content": world.PROMPT}])
    assert said(answer) == oracle(ratio=1.0)
    assert answer["usage"]["prompt_tokens"] == len(finished_run.before.prompt_ids(world.PROMPT, None))


def test_the_papers_dial_views_and_penalties(client, oracle):
    assert said(ask(client, hallucination_ratio=0)) == said(ask(client, views=1)) == oracle()
    assert said(ask(client, hallucination_ratio=0.9)) == oracle(ratio=0.9)
    assert said(ask(client, views=3)) == oracle(views=3)
    penalties = {"presence_penalty": 0.5, "frequency_penalty": 1.5}
    assert said(ask(client, **penalties)) == oracle(**penalties)
    assert said(ask(client, temperature=1, top_k=1)) == oracle()


def test_a_length_is_clipped_to_what_fits(client, oracle):
    """Neither more than the server allows (400) nor more than the context holds (512) is an error."""
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(client, **{name: 1_000_000})
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert said(answer).startswith(oracle())
    long = user(image(), text("red " * 300))
    answer = ask(client, model="after", messages=long, max_tokens=10_000)
    used = answer["usage"]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert used["total_tokens"] == 512
