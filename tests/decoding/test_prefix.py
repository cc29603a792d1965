"""Captions that begin with given tokens: cut captions are continued as if they had never been cut."""

from dataclasses import replace

import pytest

from jsfree.config import Decoding
from jsfree.decoding import algorithm1
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.requests import Caption, Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.miniworld import world


@pytest.fixture(scope="module")
def whole(captioner) -> list[tuple[Request, Caption]]:
    """Requests without a prefix, with their captions."""
    pixels = [captioner.inputs(world.draw(world.scene("development", index))) for index in range(3)]
    requests = [
        Request(
            f"{number}",
            pixels[number % 3],
            world.PROMPT,
            (0.0, 0.4, 1.0)[number // 3 % 3],
            noise_key(0, 1, str(number), "low"),
            Decoding(temperature=number % 4 and 1, max_new_tokens=40),
            with_logps=True,
        )
        for number in range(9)
    ]
    return list(zip(requests, DualPathEngine(captioner, Workload(9)).decode(requests), strict=True))


def require_equal(caption: Caption, expected: Caption) -> None:
    """Require equal captions, and log-probabilities that differ by rounding only."""
    without = {"logps": None, "unconditional_logps": None}
    assert replace(caption, **without) == replace(expected, **without)
    assert caption.logps == pytest.approx(expected.logps, abs=1e-5)
    if expected.unconditional_logps is None:
        assert caption.unconditional_logps is None
    else:
        assert caption.unconditional_logps == pytest.approx(expected.unconditional_logps, abs=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_cut_caption_continues_as_if_it_had_not_been_cut(captioner, whole, share):
    requests = [
        replace(request, prefix=caption.token_ids[: round(share * len(caption.token_ids))])
        for request, caption in whole
    ]
    for caption, (_, expected) in zip(DualPathEngine(captioner, Workload(4)).decode(requests), whole, strict=True):
        require_equal(caption, expected)


def test_a_prefix_of_another_caption_is_continued_as_by_algorithm_1(captioner, whole):
    """The first half of a caption at h = 0, continued at another h with other noise; batched with plain requests."""
    start = whole[0][1].token_ids[: len(whole[0][1].token_ids) // 2]
    requests = [replace(request, prefix=start if number % 2 else ()) for number, (request, _) in enumerate(whole)]
    engine = DualPathEngine(captioner, Workload(5))
    for caption, request in zip(engine.decode(requests), requests, strict=True):
        expected = algorithm1.decode(captioner, request)
        require_equal(caption, expected)
        assert caption.token_ids[: len(request.prefix)] == request.prefix
    shown = captioner.text(start)
    assert all(
        caption.text.startswith(shown)
        for caption, request in zip(engine.decode(requests), requests, strict=True)
        if request.prefix
    )


def test_a_prefix_as_long_as_the_caption_may_be_is_the_caption(captioner, whole):
    request, caption = whole[1]
    start = caption.token_ids[:6]
    limited = replace(request, prefix=start, decoding=Decoding(max_new_tokens=6))
    found = DualPathEngine(captioner, Workload(2)).decode([limited])[0]
    assert (found.token_ids, found.finish) == (start, "length")


def test_invalid_prefixes_are_refused(captioner, whole):
    engine, request = DualPathEngine(captioner, Workload(2)), whole[0][0]
    with pytest.raises(ValueError, match="'0': a prefix of 41 tokens exceeds 'max_new_tokens' 40"):
        engine.submit(replace(request, prefix=(5,) * 41))
    with pytest.raises(ValueError, match="has no token 9999 of the prefix"):
        engine.submit(replace(request, prefix=(5, 9999)))
    assert engine.active == 0
