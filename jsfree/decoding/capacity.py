"""How many captions an engine decodes together: as many as configured, or as many as memory holds at the moment.

An engine lays out fewer slots than configured if a step ran out of the device's memory, if less memory was free when
keys and values were laid out, or if a request was so large that few of its size fit. All of these are temporary. While
requests wait and there are fewer slots than configured, the engine tries more after ``RETRY_SECONDS``: it starts no
caption until those in flight have ended, measures the free memory and lays it out again. After each try without gain
the wait doubles, up to ``LONGEST_RETRY_SECONDS``.

A request is refused as too large only if it would not fit into all memory that could ever be free. A request that does
not fit at the moment waits, and requests that fit are decoded first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from jsfree.decoding.memory import KvSize
from jsfree.decoding.workload import Layout, Requirement, Workload
from jsfree.errors import DeviceError

RETRY_SECONDS, LONGEST_RETRY_SECONDS = 30.0, 3600.0
PATIENCE_SECONDS = 30.0
"""How long an engine waits for memory when it cannot decode a single caption."""
POLL_SECONDS = 0.1
"""Seconds between two measurements of the memory during that wait."""


class Capacity:
    """Number of slots that an engine may lay out, and when it may try more."""

    def __init__(self, workload: Workload, size: KvSize, limit: float) -> None:
        """Prepare.

        Args:
            workload: the engine's workload, with the configured number of slots.
            size: size of keys and values.
            limit: most bytes that keys and values could ever take.
        """
        self.slots = workload.slots
        """Most captions decoded together at the moment."""
        self._workload, self._size, self._limit = workload, size, limit
        self._next_try, self._last_try = math.inf, -math.inf
        self._wait = RETRY_SECONDS
        self._slots_before_try = 0
        self._short_since: float | None = None

    def check_limit(self, requirement: Requirement) -> None:
        """Check that a caption could be decoded, alone if necessary.

        Raises:
            DeviceError: it takes more memory than there could ever be.
        """
        self._layout(1, requirement, self._limit)

    def fits(self, requirement: Requirement, budget: float) -> bool:
        """Whether a caption can be decoded within ``budget`` bytes, alone if necessary."""
        try:
            self._layout(1, requirement, budget)
        except DeviceError:
            return False
        return True

    def layout(self, waiting: Sequence[Requirement], previous: Requirement | None, budget: float) -> Layout:
        """The layout with the most slots within ``budget`` bytes.

        Among layouts with as many slots it covers all waiting captions and the previous layout, else all waiting
        captions, else the first of them.

        Args:
            waiting: requirements of waiting captions; the first of them fits into ``budget``.
            previous: requirement of the layout before, or None.
            budget: bytes for keys and values.
        """
        options = [waiting[0], reduce(Requirement.union, waiting)]
        if previous is not None:
            options.append(options[-1].union(previous))
        layouts = [self._layout(self.slots, option, budget) for option in options if self.fits(option, budget)]
        most_slots = max(layout.slots for layout in layouts)
        chosen = next(layout for layout in reversed(layouts) if layout.slots == most_slots)
        if chosen.slots == self._workload.slots:
            self._next_try = math.inf
        elif self._next_try == math.inf:
            self._try_after(RETRY_SECONDS if chosen.slots > self._slots_before_try else 2 * self._wait)
        self._slots_before_try = 0
        return chosen

    def reduce_to(self, slots: int) -> None:
        """Lay out at most ``slots`` until the next try, because the device ran out of memory with more."""
        self.slots = slots
        since_try = time.monotonic() - self._last_try
        self._try_after(2 * self._wait if since_try <= self._wait else RETRY_SECONDS)

    @property
    def retry_due(self) -> bool:
        """Whether it is time to try more slots than are laid out."""
        return time.monotonic() >= self._next_try

    def try_more(self, slots: int, waiting: Sequence[Requirement], budget: float) -> bool:
        """Whether a new layout is likely to give more than ``slots``; call it when ``retry_due``.

        Args:
            slots: number of slots that are laid out.
            waiting: requirements of waiting captions.
            budget: bytes for keys and values, including those laid out.
        """
        more, requirement = min(2 * self.slots, self._workload.slots), reduce(Requirement.union, waiting)
        if not self.fits(requirement, budget) or self._layout(more, requirement, budget).slots <= slots:
            self._try_after(2 * self._wait)
            return False
        self.slots, self._slots_before_try = more, slots
        self._next_try, self._last_try = math.inf, time.monotonic()
        return True

    def wait_for_memory(self) -> bool:
        """Pause because not a single caption can be decoded; False once ``PATIENCE_SECONDS`` have passed."""
        now = time.monotonic()
        if self._short_since is None:
            self._short_since = now
        if now - self._short_since >= PATIENCE_SECONDS:
            return False
        time.sleep(POLL_SECONDS)
        return True

    def reset_patience(self) -> None:
        """Restart the patience of ``wait_for_memory``, because captions are being decoded."""
        self._short_since = None

    def _layout(self, slots: int, requirement: Requirement, budget: float) -> Layout:
        return replace(self._workload, slots=slots).layout(self._size, requirement, budget)

    def _try_after(self, seconds: float) -> None:
        self._wait = min(seconds, LONGEST_RETRY_SECONDS)
        self._next_try = time.monotonic() + self._wait
