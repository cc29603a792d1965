"""Rate limits on a simulated clock, Retry-After, backoff and the ledger."""

import asyncio
import random
from email.utils import formatdate

import pytest

from jsfree.judge.limits import Ledger, RateLimiter, backoff, retry_after
from jsfree.judge.settings import Price


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


def starts(limiter, clock, tokens, count):
    async def run():
        times = []
        for _ in range(count):
            await limiter.acquire(tokens)
            times.append(clock.now)
        return times

    return asyncio.run(run())


def test_no_minute_has_more_requests_than_the_limit():
    clock = Clock()
    times = starts(RateLimiter(30, None, clock, clock.sleep), clock, 1, 100)
    assert max(sum(start <= time < start + 60 for time in times) for start in times) == 30
    assert times[-1] - times[0] == pytest.approx(99 * 2)


def test_tokens_limit_the_rate_and_unused_ones_are_given_back():
    clock = Clock()
    limiter = RateLimiter(None, 6000, clock, clock.sleep)
    assert starts(limiter, clock, 1000, 3) == pytest.approx([100, 110, 120])
    limiter.correct(reserved=1000, used=100)
    assert starts(limiter, clock, 1, 1) == pytest.approx([121])


def test_a_pause_delays_every_request():
    clock = Clock()
    limiter = RateLimiter(None, None, clock, clock.sleep)
    limiter.pause(7.0)
    assert starts(limiter, clock, 1, 2) == pytest.approx([107, 107])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"Retry-After-Ms": "250", "Retry-After": "3"}, 0.25),
        ({"Retry-After": formatdate(1_000_030, usegmt=True)}, 30.0),
        ({"Retry-After": formatdate(999_000, usegmt=True)}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-4"}, None),
        ({"Retry-After": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_seconds_milliseconds_and_as_a_date(headers, seconds):
    assert retry_after(headers, now=1_000_000) == (seconds if seconds is None else pytest.approx(seconds))


def test_backoff_doubles_is_drawn_from_the_upper_half_and_bounded():
    waits = [[backoff(attempt, 1.0, 5.0, random.Random(seed)) for seed in range(200)] for attempt in (1, 2, 3, 4, 900)]
    for drawn, limit in zip(waits, (1, 2, 4, 5, 5), strict=True):
        assert limit / 2 <= min(drawn) < 0.6 * limit
        assert 0.9 * limit < max(drawn) <= limit


def test_the_ledger_counts_requests_in_flight_and_uncertain_charges_against_the_budget():
    ledger = Ledger(Price(input=1.0, output=1.0), budget=10.0)
    ledger.reserve(6.0)
    assert ledger.fits(4.0)
    assert not ledger.fits(4.1)
    ledger.settle(6.0, spent=1.0)
    assert ledger.fits(9.0)
    ledger.reserve(5.0)
    ledger.settle(5.0, uncertain=5.0)
    assert ledger.fits(4.0)
    assert not ledger.fits(4.1)
    assert (ledger.spent, ledger.uncertain, ledger.in_flight) == (1.0, 5.0, 0)
