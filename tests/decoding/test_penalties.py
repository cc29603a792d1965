"""Penalties of repeated tokens, and the log-probabilities of the distribution that was drawn from, by Algorithm 1."""

from dataclasses import replace

import pytest
import torch

from jsfree.config import Decoding, Views
from jsfree.decoding import algorithm1, mixing
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.miniworld import world

GRID = [(ratio, views) for ratio in (0.0, 0.4) for views in (1, 2)]


@pytest.fixture(scope="module")
def requests(captioner) -> list[Request]:
    """Captions over ratios, views and penalties, with the three most probable tokens of each step."""
    return [
        Request(
            str(number),
            captioner.inputs(world.draw(world.scene("development", number % 2))),
            world.PROMPT,
            ratio,
            noise_key(0, 1, str(number), "low"),
            Decoding(max_new_tokens=14, temperature=0.7 * (number % 3), top_p=0.9, views=Views(count=views)),
            alternatives=3,
            presence_penalty=(0.0, 0.6, -0.4)[number % 3],
            frequency_penalty=(0.0, 0.5)[number // 2 % 2],
        )
        for number, (ratio, views) in enumerate(GRID * 2)
    ]


def close(found, expected) -> bool:
    """Whether two lists of tokens' log-probabilities agree; equally probable tokens may be in any order."""
    return all(
        one.token == other.token
        and one.logp == pytest.approx(other.logp, abs=1e-4)
        and [logp for _, logp in one.alternatives] == pytest.approx([logp for _, logp in other.alternatives], abs=1e-4)
        for one, other in zip(found, expected, strict=True)
    )


def test_captions_with_penalties_and_their_logps_are_those_of_algorithm_1(captioner, requests):
    captions = DualPathEngine(captioner, Workload(3, views=2)).decode(requests)
    for caption, request in zip(captions, requests, strict=True):
        expected = algorithm1.decode(captioner, request)
        assert caption.token_ids == expected.token_ids
        assert close(caption.token_logps, expected.token_logps)


def test_asking_for_logps_changes_no_token_and_others_get_none(captioner, requests):
    plain = [replace(each, alternatives=None) for each in requests]
    engine = DualPathEngine(captioner, Workload(4, views=2))
    with_logps = engine.decode(requests)
    without = engine.decode(plain)
    assert [each.token_ids for each in with_logps] == [each.token_ids for each in without]
    assert {each.token_logps for each in without} == {None}
    assert {len(token.alternatives) for each in with_logps for token in each.token_logps} == {3}


def test_a_large_penalty_lets_no_token_repeat(captioner, requests):
    request = replace(requests[0], presence_penalty=1e4, decoding=Decoding(temperature=0, max_new_tokens=40))
    (caption,) = DualPathEngine(captioner, Workload(1)).decode([request])
    assert len(set(caption.token_ids)) == len(caption.token_ids) > 10


def test_a_penalty_counts_each_token_of_the_caption():
    penalty_V = mixing.token_penalties(
        [2, 0, 2], presence=1.0, frequency=0.25, vocabulary=4, device=torch.device("cpu")
    )
    assert penalty_V.tolist() == [1.25, 0.0, 1.5, 0.0]
