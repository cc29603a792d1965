"""When a request may be sent: rate limits, waits between attempts, and the budget.

Pure arithmetic apart from ``RateLimiter.acquire``, which sleeps.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime

from jsfree.judge.settings import Price

MINUTE = 60.0


class RateLimiter:
    """Spaces requests evenly: after each, the next waits for the share of a minute that it used up.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit.
        clock: seconds, monotonic.
        sleep: waits a number of seconds.
    """

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._request_seconds = MINUTE / requests_per_minute if requests_per_minute else 0.0
        self._token_seconds = MINUTE / tokens_per_minute if tokens_per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next_request = self._next_token = self._paused_until = -math.inf

    async def acquire(self, tokens: int) -> None:
        """Wait until a request that may use ``tokens`` tokens may be sent, and reserve its share."""
        start = max(self._clock(), self._next_request, self._next_token)
        self._next_request = start + self._request_seconds
        self._next_token = start + self._token_seconds * tokens
        while (wait := max(start, self._paused_until) - self._clock()) > 0:
            await self._sleep(wait)

    def correct(self, reserved: int, used: int) -> None:
        """Replace the reserved tokens of a request by those it used."""
        self._next_token += self._token_seconds * (used - reserved)

    def pause(self, seconds: float) -> None:
        """Send nothing for ``seconds``, because the server asked for it."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a response asks to wait, from ``Retry-After-Ms`` or ``Retry-After`` (RFC 9110, 10.2.3).

    Args:
        headers: header fields by name, regardless of case.
        now: seconds since the epoch, for dates.

    Returns:
        None without a valid header; 0 for a date in the past.
    """
    named = {name.lower(): value.strip() for name, value in headers.items()}
    for name, factor in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(named[name]) * factor
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        moment = parsedate_to_datetime(named.get("retry-after", ""))
        return max(0.0, moment.timestamp() - now)
    except (ValueError, OverflowError):
        return None


def backoff(attempt: int, first: float, maximum: float, rng: random.Random) -> float:
    """Seconds before attempt ``attempt`` + 1: drawn from the upper half of a limit that doubles with each attempt.

    Args:
        attempt: number of attempts that failed, from 1.
        first: limit after the first attempt.
        maximum: upper bound of the limit.
    """
    limit: float = min(maximum, first * 2.0 ** min(attempt - 1, 60))
    return limit * rng.uniform(0.5, 1.0)


class Ledger:
    """What a judge has cost, and what the requests in flight may cost.

    ``spent`` is known from the usage that replies report. ``uncertain`` is the upper bound for requests that may have
    been charged without a reply arriving: timeouts, broken connections and malformed responses. Both count against the
    budget.
    """

    def __init__(self, price: Price | None, budget: float | None) -> None:
        self.price, self.budget = price, budget
        self.spent = self.uncertain = self.reserved = 0.0
        self.in_flight = 0

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """The cost of a reply; 0 without a price."""
        return self.price.cost(prompt_tokens, completion_tokens, cached_tokens) if self.price else 0.0

    def fits(self, cost: float) -> bool:
        """Whether a further request that costs ``cost`` at most stays within the budget."""
        if self.budget is None:
            return True
        return self.spent + self.uncertain + self.reserved + cost <= self.budget * (1 + 1e-12)

    def reserve(self, cost: float) -> None:
        """Count a request as in flight."""
        self.reserved += cost
        self.in_flight += 1

    def settle(self, reserved: float, spent: float = 0.0, uncertain: float = 0.0) -> None:
        """Replace the reservation of a request by what it cost."""
        self.in_flight -= 1
        self.reserved = self.reserved - reserved if self.in_flight else 0.0
        self.spent += spent
        self.uncertain += uncertain
