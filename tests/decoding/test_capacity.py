"""Temporary shortage of memory: fewer slots than configured, and how they are restored."""

import itertools
from dataclasses import replace

import pytest
import torch

from jsfree.config import Decoding
from jsfree.decoding import capacity, engine
from jsfree.decoding.capacity import LONGEST_RETRY_SECONDS, PATIENCE_SECONDS, RETRY_SECONDS, Capacity
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.forward import Forward
from jsfree.decoding.loop import DecodingLoop
from jsfree.decoding.memory import GIB, KvSize, kv_size
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Requirement, Workload
from jsfree.errors import DecodingError, DeviceError
from jsfree.miniworld import world

SHORT, LONG = Requirement(100, 20, 28), Requirement(100, 20, 300)
SIZE = KvSize(1000, 1)
WORKLOAD = Workload.for_captions(16)


class Clock:
    """A clock that advances only by ``sleep``."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(capacity, "time", made)
    return made


def bytes_of(slots: int, requirement: Requirement) -> float:
    """Bytes of a number of captions."""
    return replace(WORKLOAD, slots=slots).layout(SIZE, requirement, float("inf")).bytes


def test_the_wait_doubles_after_each_failed_try(clock):
    limits, enough = Capacity(WORKLOAD, SIZE, float("inf")), float("inf")
    waits = []
    for _ in range(12):
        limits.reduce_to(8)
        assert limits.layout([SHORT], None, enough).slots == 8
        begun = clock.now
        while not limits.retry_due:
            clock.sleep(1)
        waits.append(clock.now - begun)
        assert limits.try_more(8, [SHORT], enough)
        assert limits.layout([SHORT], None, enough).slots == 16
        assert not limits.retry_due
    assert waits[:3] == [RETRY_SECONDS, 2 * RETRY_SECONDS, 4 * RETRY_SECONDS]
    assert waits[-1] == LONGEST_RETRY_SECONDS
    clock.sleep(2 * LONGEST_RETRY_SECONDS)  # it held: what comes now is another shortage
    limits.reduce_to(8)
    clock.sleep(RETRY_SECONDS)
    assert limits.retry_due


def test_slots_are_restored_step_by_step(clock):
    limits = Capacity(WORKLOAD, SIZE, float("inf"))
    for fewer in (8, 4, 2):
        limits.reduce_to(fewer)
    found = []
    while limits.slots < 16:
        assert not limits.retry_due
        clock.sleep(RETRY_SECONDS)
        assert limits.retry_due
        assert limits.try_more(limits.slots, [SHORT], float("inf"))
        found.append(limits.layout([SHORT], None, float("inf")).slots)
    assert found == [4, 8, 16]
    clock.sleep(LONGEST_RETRY_SECONDS)
    assert not limits.retry_due


def test_no_layout_is_dropped_without_gain(clock):
    """The device holds five captions: checks become rarer and do not interrupt decoding."""
    limits, budget, looks = Capacity(WORKLOAD, SIZE, float("inf")), bytes_of(5, SHORT), 0
    assert limits.layout([SHORT], None, budget).slots == 5
    while clock.now < LONGEST_RETRY_SECONDS:
        clock.sleep(1)
        if limits.retry_due:
            looks += 1
            assert not limits.try_more(5, [SHORT], budget)
    assert 5 <= looks <= 7
    clock.sleep(LONGEST_RETRY_SECONDS)
    assert limits.try_more(5, [SHORT], bytes_of(7, SHORT))
    assert limits.layout([SHORT], None, bytes_of(7, SHORT)).slots == 7


def test_a_request_is_refused_only_if_it_could_never_fit(clock):
    limits = Capacity(WORKLOAD, SIZE, bytes_of(1, LONG))
    limits.check_limit(LONG)
    assert not limits.fits(LONG, bytes_of(1, SHORT))
    with pytest.raises(DeviceError, match="the keys and values of one caption take"):
        limits.check_limit(replace(LONG, caption=400))


@pytest.fixture(scope="module")
def request_of(captioner):
    pixels = [captioner.inputs(world.draw(world.scene("development", index))) for index in range(6)]

    def made(index: int, length: int, prompt: str = world.PROMPT) -> Request:
        key = noise_key(0, 1, str(index), "low")
        return Request(f"{index}", pixels[index % 6], prompt, 0.0, key, Decoding(max_new_tokens=length))

    return made


def tick(clock: Clock, monkeypatch) -> None:
    """Let each step take a second."""
    real = Forward.__call__

    def timed(forward: Forward, rows):
        clock.sleep(1)
        return real(forward, rows)

    monkeypatch.setattr(Forward, "__call__", timed)


def test_slots_are_restored_after_a_shortage_of_memory(captioner, request_of, clock, monkeypatch):
    tick(clock, monkeypatch)
    real, crowded = Forward.__call__, True

    def out_of_memory(forward: Forward, rows):
        if crowded and forward.cache.layout.rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(forward, rows)

    monkeypatch.setattr(Forward, "__call__", out_of_memory)
    requests = [request_of(index, 6 + index % 5) for index in range(60)]
    decoder = DualPathEngine(captioner, Workload(8, dual_path_share=0.0))
    for request in requests:
        decoder.submit(request)
    captions, slots = [], []
    while decoder.active:
        captions += decoder.step().finished
        if decoder.layout is not None and decoder.layout.slots != (slots or [0])[-1]:
            slots.append(decoder.layout.slots)
        crowded = clock.now < 20
    assert slots == [2, 4, 8]
    monkeypatch.setattr(Forward, "__call__", real)
    alone = DualPathEngine(captioner, Workload(8, dual_path_share=0.0)).decode(requests)
    assert {each.request_id: each for each in captions} == {each.request_id: each for each in alone}


def measured(captioner, monkeypatch, slots: list[float], length: int = 8) -> list[float]:
    """Set the budget to that of ``slots[0]`` captions, which the test may change."""
    one = DualPathEngine(captioner, Workload(1, dual_path_share=0.0))
    pixels = captioner.inputs(world.draw(world.scene("development", 0)))
    one.decode([Request("x", pixels, world.PROMPT, 0.0, 0, Decoding(max_new_tokens=length))])
    monkeypatch.setattr(engine, "kv_budget", lambda *_: slots[0] * one.layout.bytes)
    return slots


def test_memory_that_becomes_free_is_used(captioner, request_of, clock, monkeypatch):
    tick(clock, monkeypatch)
    free = measured(captioner, monkeypatch, [2.0])
    decoder = DualPathEngine(captioner, Workload(8, dual_path_share=0.0))
    requests = [request_of(index, 8) for index in range(40)]
    low = decoder.decode(requests[:6])
    assert decoder.layout.slots == 2
    free[0] = 20.0
    clock.sleep(RETRY_SECONDS)
    rest = decoder.decode(requests[6:])
    assert decoder.layout.slots == 8
    assert low + rest == DualPathEngine(captioner, Workload(8, dual_path_share=0.0)).decode(requests)


def test_a_request_that_does_not_fit_at_the_moment_waits_behind_others(captioner, request_of, clock, monkeypatch):
    tick(clock, monkeypatch)
    free = measured(captioner, monkeypatch, [2.0])
    decoder = DualPathEngine(captioner, Workload(4, dual_path_share=0.0))
    for request in (request_of(0, 200), *(request_of(index, 8) for index in range(1, 6))):
        decoder.submit(request)  # does not raise
    order = []
    while decoder.active:
        step = decoder.step()
        assert not step.failed
        order += [caption.request_id for caption in step.finished]
        if len(order) == 5 and clock.now > 40:
            free[0] = 40.0
    assert order[-1] == "0"
    assert clock.now > 40
    assert decoder.layout.slots > 1


def test_a_request_without_memory_fails_after_some_time_and_decoding_continues(
    captioner, request_of, clock, monkeypatch
):
    measured(captioner, monkeypatch, [2.0])
    loop = DecodingLoop(DualPathEngine(captioner, Workload(4, dual_path_share=0.0)))
    long, short = loop.submit([request_of(0, 200), request_of(1, 8)])
    assert short.result(60).request_id == "1"
    with pytest.raises(DecodingError, match="do not fit into the memory that is free"):
        long.result(60)
    assert PATIENCE_SECONDS <= clock.now <= PATIENCE_SECONDS + 1
    assert len(loop.decode([request_of(2, 8)])) == 1
    assert loop.problem() is None


def test_a_long_request_does_not_reduce_the_slots_of_later_short_ones(captioner, request_of, clock, monkeypatch):
    tick(clock, monkeypatch)
    tokens = 2 * (len(captioner.prompt_ids(world.PROMPT, captioner.blank)) + 208)
    decoder = DualPathEngine(
        captioner, Workload(8, dual_path_share=0.0), kv_cache_gib=tokens * kv_size(captioner).token_bytes / GIB
    )
    numbers = itertools.count()

    def slots_for(*lengths: int) -> int:
        decoder.decode([request_of(next(numbers), length) for length in lengths])
        return decoder.layout.slots

    assert slots_for(8, 8) == 8
    assert slots_for(200) == 2
    assert slots_for(*[8] * 20, *[9] * 20) == 8


def test_the_engine_waits_for_memory_for_one_caption(captioner, request_of, clock, monkeypatch):
    real = Forward.__call__

    def out_of_memory(forward: Forward, rows):
        if clock.now < PATIENCE_SECONDS / 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(forward, rows)

    monkeypatch.setattr(Forward, "__call__", out_of_memory)
    decoder = DualPathEngine(captioner, Workload(4, dual_path_share=0.0))
    requests = [request_of(index, 8) for index in range(3)]
    captions = decoder.decode(requests)
    assert captions == DualPathEngine(captioner, Workload(4, dual_path_share=0.0)).decode(requests)
