"""One engine for many callers: sharing, errors and the end of the loop."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from jsfree.config import Decoding
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.loop import DecodingLoop
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.errors import DecodingError, DeviceError, NoTokenError
from jsfree.miniworld import world
from tests.support.images import spoiled


@pytest.fixture(scope="module")
def batch_of(captioner):
    def made(name: str, count: int, length: int = 12) -> list[Request]:
        pixels = [captioner.inputs(world.draw(world.scene("development", index))) for index in range(count)]
        return [
            Request(
                f"{name}/{index}",
                pixels[index],
                world.PROMPT,
                0.5 * (index % 2),
                noise_key(0, 1, str(index), "low"),
                Decoding(max_new_tokens=length),
            )
            for index in range(count)
        ]

    return made


def test_concurrent_callers_get_the_same_captions_as_alone_and_slots_stay_busy(captioner, batch_of):
    expected = [
        (each.token_ids, each.text) for each in DualPathEngine(captioner, Workload(4)).decode(batch_of("alone", 10))
    ]
    engine = DualPathEngine(captioner, Workload(4))
    loop = DecodingLoop(engine)
    batches = [batch_of(f"caller {number}", 10) for number in range(5)]
    with ThreadPoolExecutor(3) as callers:
        for captions in callers.map(loop.decode, batches):
            assert [(each.token_ids, each.text) for each in captions] == expected
    assert engine.utilisation > 0.9  # decoded one batch after another, slots would run empty five times


def test_the_thread_ends_when_idle_and_restarts(captioner, batch_of):
    loop = DecodingLoop(DualPathEngine(captioner, Workload(4)))
    for number in range(2):
        loop.decode(batch_of(str(number), 2))
        deadline = time.monotonic() + 5
        while any(each.name == "decoding" for each in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert loop.problem() is None


def test_captions_have_the_time_that_they_waited_for_a_slot(captioner, batch_of):
    """One slot: the second caption starts when the first has ended."""
    loop = DecodingLoop(DualPathEngine(captioner, Workload(1)))
    started = time.monotonic()
    futures = loop.submit(batch_of("timed", 2, 20))
    ended: dict[int, float] = {}
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: ended.setdefault(number, time.monotonic() - started))
    first, second = (future.result(60).timing for future in futures)
    assert 0 <= first.started < first.first_token < first.finished
    assert first.finished - 0.001 < second.first_token < second.finished  # in the same step
    assert first.first_token < second.started  # it waited for all tokens of the first
    assert first.finished <= ended[0] + 0.001
    assert second.finished <= ended[1]


def test_the_timing_of_a_caption_of_one_token(captioner, batch_of):
    loop = DecodingLoop(DualPathEngine(captioner, Workload(1)))
    timing = loop.decode(batch_of("short", 1, 1))[0].timing
    assert 0 <= timing.started < timing.first_token == timing.finished


def test_a_failing_caller_does_not_affect_others(captioner, batch_of):
    engine = DualPathEngine(captioner, Workload(4))
    loop = DecodingLoop(engine)

    def failing():
        yield from batch_of("fails", 3, 40)
        raise OSError("an image is gone")

    with ThreadPoolExecutor(2) as callers:
        fails = callers.submit(loop.decode, failing())
        works = callers.submit(loop.decode, batch_of("works", 6))
        with pytest.raises(OSError, match="is gone"):
            fails.result()
        assert len(works.result()) == 6
    assert engine.active == 0


def test_a_request_that_does_not_fit_fails_alone(captioner, batch_of):
    engine = DualPathEngine(captioner, Workload(2), kv_cache_gib=0.001)
    loop = DecodingLoop(engine)
    with pytest.raises(DeviceError, match="keys and values of one caption"):
        loop.decode(batch_of("long", 1, 900))
    assert len(loop.decode(batch_of("short", 3, 4))) == 3


def test_the_error_that_ends_the_loop_is_raised_to_callers(captioner, batch_of, monkeypatch):
    engine = DualPathEngine(captioner, Workload(2))
    loop = DecodingLoop(engine)
    monkeypatch.setattr(engine, "step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.decode(batch_of("x", 30))  # longer than the queue: the loop ends while the caller still submits
    assert "has ended" in loop.problem()
    with pytest.raises(ZeroDivisionError):
        loop.decode(batch_of("y", 1))
    with pytest.raises(DecodingError, match="has ended"):
        loop.submit(batch_of("z", 1))


def test_an_invalid_request_fails_alone(captioner, batch_of):
    loop = DecodingLoop(DualPathEngine(captioner, Workload(4, dual_path_share=0.0)))
    good, mixing = batch_of("x", 2, 200)
    futures = loop.submit([good, mixing, *batch_of("y", 1)])
    with pytest.raises(ValueError, match="no second path"):
        futures[1].result(10)
    assert futures[0].result(60).request_id == "x/0"
    assert futures[2].result(60).request_id == "y/0"


def test_a_caption_without_a_token_fails_alone_and_decoding_continues(captioner, batch_of):
    requests = batch_of("x", 3)
    requests[0] = replace(requests[0], image=spoiled(requests[0].image))
    loop = DecodingLoop(DualPathEngine(captioner, Workload(4)))
    futures = loop.submit(requests)
    with pytest.raises(DecodingError, match="no token that may be drawn any probability"):
        futures[0].result(60)
    assert [future.result(60).request_id for future in futures[1:]] == ["x/1", "x/2"]
    error, *captions = loop.decode(requests)
    assert isinstance(error, NoTokenError)
    assert [caption.request_id for caption in captions] == ["x/1", "x/2"]
    assert len(loop.decode(batch_of("y", 2))) == 2
    assert loop.problem() is None


def test_a_closed_loop_refuses_requests(captioner, batch_of):
    loop = DecodingLoop(DualPathEngine(captioner, Workload(2)))
    loop.decode(batch_of("x", 1))
    loop.close()
    with pytest.raises(DecodingError):
        loop.decode(batch_of("y", 1))


def test_a_listener_gets_each_token_in_order_and_the_caption_the_last(captioner, batch_of):
    requests, heard = batch_of("x", 3, 20), {}
    loop = DecodingLoop(DualPathEngine(captioner, Workload(2)))

    def listen(drawn) -> None:
        assert drawn.position == len(heard.setdefault(drawn.request_id, []))
        heard[drawn.request_id].append(drawn.token)

    futures = loop.submit(requests, [listen, listen, None])
    captions = [future.result(60) for future in futures]
    assert heard == {each.request_id: list(each.token_ids[:-1]) for each in captions[:2]}
