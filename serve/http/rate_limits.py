"""Requests and tokens per minute of each key, reported in OpenAI's ``x-ratelimit-*`` headers.

The limits hold in each process that serves HTTP: with two of them a key has up to twice its limits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from serve.http.errors import ApiError
from serve.keys import Key

MINUTE = 60.0


class Budget:
    """An amount that is used up by requests and refills continuously, up to ``limit``, in a minute."""

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._available = float(limit)
        self._at = now

    def available(self, now: float) -> float:
        """The amount that is available; negative after more was used than there was."""
        return min(self.limit, self._available + (now - self._at) * self.limit / MINUTE)

    def use(self, amount: float, now: float) -> None:
        """Use an amount up, even if less is available."""
        self._available = self.available(now) - amount
        self._at = now

    def seconds_until(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` is available."""
        return max(0.0, (amount - self.available(now)) * MINUTE / self.limit)


@dataclass
class Budgets:
    """The budgets of one key; None where it has no limit."""

    requests: Budget | None
    tokens: Budget | None


class RateLimits:
    """The budgets of all keys.

    Args:
        clock: seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._budgets: dict[Key, Budgets] = {}

    def admit(self, key: Key) -> None:
        """Count a request of a key.

        Raises:
            ApiError: the key has used up its requests or tokens; status 429.
        """
        budgets, now = self._of(key), self._clock()
        if budgets.requests is not None and budgets.requests.available(now) < 1:
            raise _exceeded("requests", budgets.requests, budgets.requests.seconds_until(1, now))
        if budgets.tokens is not None and budgets.tokens.available(now) <= 0:
            raise _exceeded("tokens", budgets.tokens, budgets.tokens.seconds_until(1, now))
        if budgets.requests is not None:
            budgets.requests.use(1, now)

    def charge(self, key: Key, tokens: int) -> None:
        """Count the tokens of an answered request: their number is known only afterwards."""
        budget = self._of(key).tokens
        if budget is not None:
            budget.use(tokens, self._clock())

    def headers(self, key: Key) -> list[tuple[str, str]]:
        """OpenAI's headers about what is available to a key."""
        budgets, now = self._of(key), self._clock()
        named = (("requests", budgets.requests), ("tokens", budgets.tokens))
        return [
            header
            for name, budget in named
            if budget is not None
            for header in (
                (f"x-ratelimit-limit-{name}", str(budget.limit)),
                (f"x-ratelimit-remaining-{name}", str(max(0, math.floor(budget.available(now))))),
                (f"x-ratelimit-reset-{name}", f"{budget.seconds_until(budget.limit, now):.3f}s"),
            )
        ]

    def _of(self, key: Key) -> Budgets:
        if key not in self._budgets:
            now = self._clock()
            limits = (key.requests_per_minute, key.tokens_per_minute)
            self._budgets[key] = Budgets(*(None if limit is None else Budget(limit, now) for limit in limits))
        return self._budgets[key]


def _exceeded(what: str, budget: Budget, seconds: float) -> ApiError:
    wait = max(1, math.ceil(seconds))
    message = f"the key's limit of {budget.limit} {what} per minute is reached; try again in {wait} s"
    return ApiError(429, message, code="rate_limit_exceeded", kind=what, retry_after_s=wait)
