"""The batched decoder against Algorithm 1 as the paper writes it."""

from dataclasses import replace

import pytest

from jsfree.config import Decoding
from jsfree.decoding import algorithm1
from jsfree.decoding.engine import DualPathDecoder
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.miniworld import world

PROMPT = "Describe image in detail."
GRID = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
SETTINGS = (Decoding(), Decoding(temperature=0.6), Decoding(top_p=0.8), Decoding(temperature=0))


def request(index: int, role: str, ratio: float, decoding: Decoding) -> Request:
    image = world.draw(world.scene("development", index))
    return Request(f"{index}/{role}", image, PROMPT, ratio, noise_key(0, 1, str(index), role), decoding)


@pytest.mark.slow
def test_batched_and_literal_decoding_agree_token_for_token(captioner):
    """Over 200 captions over a grid of ratios, temperatures and nuclei, cut short and not."""
    requests = [
        request(index, role, GRID[(index + shift) % len(GRID)], replaced)
        for index in range(102)
        for shift, role in ((0, "low"), (2, "high"))
        for replaced in [SETTINGS[index // 4 % 4].model_copy(update={"max_new_tokens": 60 if index % 4 == 0 else 14})]
    ]
    batched = DualPathDecoder(captioner, slots=48).decode(requests)
    literal = [algorithm1.decode(captioner, each) for each in requests]
    assert len(requests) >= 200
    assert [caption.token_ids for caption in batched] == [caption.token_ids for caption in literal]
    assert batched == literal
    assert {caption.finish for caption in batched} == {"stop", "length"}


def test_a_caption_does_not_depend_on_its_neighbours(captioner):
    requests = [request(i, "high", 0.4, Decoding(max_new_tokens=30)) for i in range(12)]
    together = DualPathDecoder(captioner, slots=12).decode(requests)
    in_threes = DualPathDecoder(captioner, slots=3).decode(requests[::-1])
    assert together == in_threes[::-1]


def test_geometric_mixing_agrees_with_its_oracle_too(captioner):
    requests = [request(i, "low", 0.5, Decoding(max_new_tokens=20)) for i in range(4)]
    batched = DualPathDecoder(captioner, slots=4, mode="logit").decode(requests)
    assert batched == [algorithm1.decode(captioner, each, "logit") for each in requests]


def test_requests_come_and_go_between_steps(captioner):
    decoder = DualPathDecoder(captioner, slots=2)
    for index in range(4):
        decoder.submit(request(index, "low", 0.2, Decoding(max_new_tokens=6 + index)))
    assert decoder.active == 4
    assert decoder.step() == []
    assert decoder.cancel("0/low")  # live
    assert decoder.cancel("3/low")  # waiting
    assert not decoder.cancel("9/low")
    done = []
    while decoder.active:
        done += decoder.step()
    assert {caption.request_id for caption in done} == {"1/low", "2/low"}
    alone = DualPathDecoder(captioner, slots=1).decode([request(1, "low", 0.2, Decoding(max_new_tokens=7))])
    assert [caption for caption in done if caption.request_id == "1/low"] == alone


def test_prompts_of_different_length_are_decoded_in_waves_of_their_own(captioner):
    short = replace(request(0, "low", 0.3, Decoding(max_new_tokens=10)), prompt="Describe.")
    long = request(1, "low", 0.3, Decoding(max_new_tokens=10))
    captions = DualPathDecoder(captioner, slots=4).decode([short, long])
    assert captions == [algorithm1.decode(captioner, short), algorithm1.decode(captioner, long)]
