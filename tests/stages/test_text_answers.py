"""Answers to prompts without an image, and their log-probabilities, against the literal decoder."""

import math

import pytest

from jsfree import config
from jsfree.config import Decoding
from jsfree.decoding.algorithm1 import next_token_probs
from jsfree.decoding.requests import Request
from jsfree.miniworld.world import PROMPT
from jsfree.stages.text_answers import TextAnswerWriter, TextLikelihoodScorer

MODEL = "miniworld:captioner"
PROMPTS = [PROMPT, "What color is the cup?"]


def samples():
    image = {"uri": None, "bytes": None, "sha256": None}
    return [
        {"sample_id": f"{number}", "image": {"id": f"{number}", **image}, "prompt": prompt}
        for number, prompt in enumerate(PROMPTS)
    ]


def writer(temperature):
    mode = {"temperature": temperature, "max_new_tokens": 8}
    return TextAnswerWriter(config.build({"evaluate": {"modes": {"text": mode}}}, where="test"), MODEL, "m0", "text")


def test_log_probabilities_are_those_of_the_unconditional_path():
    answers = writer(1.0)(samples()).rows
    scorer = TextLikelihoodScorer(config.RunConfig(), MODEL)
    output = scorer(answers)
    for answer, row in zip(answers, output.rows, strict=True):
        assert row["sample_id"] == answer["sample_id"]
        request = Request("x", scorer.captioner.blank, answer["prompt"], 1.0, 0, Decoding())
        for place, logp in enumerate(row["logps"][0][:4]):
            probs_V = next_token_probs(scorer.captioner, request, answer["token_ids"][:place])
            assert logp == pytest.approx(math.log(probs_V[answer["token_ids"][place]]), abs=1e-4)
    assert output.tokens == sum(len(answer["token_ids"]) for answer in answers)


def test_an_answer_does_not_depend_on_the_others_and_its_seed_is_its_own():
    write = writer(1.0)
    both = write(samples()).rows
    assert write(samples()[1:]).rows == both[1:]
    assert [row["finish"] in ("stop", "length") for row in both] == [True, True]
    again = [{**samples()[1], "sample_id": f"{draw}"} for draw in range(6)]
    assert len({row["text"] for row in write(again).rows}) > 1


def test_at_temperature_zero_every_token_is_the_most_likely_one():
    write = writer(0.0)
    (answer,) = write(samples()[:1]).rows
    request = Request("x", write.captioner.blank, PROMPT, 1.0, 0, Decoding())
    for place, token in enumerate(answer["token_ids"][:4]):
        assert int(next_token_probs(write.captioner, request, answer["token_ids"][:place]).argmax()) == token
