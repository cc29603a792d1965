"""How many captions an engine decodes together: as many as configured, or as memory holds for now.

Three things make an engine lay out fewer slots than configured: a step ran out of the device's memory, less memory was
free when keys and values were laid out, or a request took so much that few of its size fit. None of them lasts, so
none is remembered for ever. While requests wait and there are fewer slots than configured, the engine tries more after
``RETRY_SECONDS``: it admits no caption until those in flight have ended, measures the free memory again and lays it
out anew. After each try that brings nothing the wait doubles, up to ``LONGEST_RETRY_SECONDS``.

A request is refused as too large only if it would not fit into all of the memory that could ever be free. One that
does not fit now waits: requests that do fit are decoded first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from jsfree.decoding.memory import Keys, Layout, Need, Shape
from jsfree.errors import DeviceError

RETRY_SECONDS, LONGEST_RETRY_SECONDS = 30.0, 3600.0
PATIENCE_SECONDS = 30.0
"""How long an engine waits for memory when it can decode nothing at all."""
PAUSE_SECONDS = 0.1
"""Between two looks at the memory meanwhile."""


class Capacity:
    """The slots that an engine may lay out, and when it may try more again."""

    def __init__(self, shape: Shape, keys: Keys, limit: float) -> None:
        """Prepare.

        Args:
            shape: what the engine is configured for.
            keys: what a token's keys and values take.
            limit: bytes that they could take at best.
        """
        self.slots = shape.slots
        """Most captions decoded together for now."""
        self._shape, self._keys, self._limit = shape, keys, limit
        self._next_try, self._last_try = math.inf, -math.inf
        self._wait = RETRY_SECONDS
        self._tried_from = 0
        self._short_since: float | None = None

    def require(self, need: Need) -> None:
        """Check that a caption could be decoded, alone if need be.

        Raises:
            DeviceError: it takes more memory than there could be.
        """
        self._most(1, need, self._limit)

    def holds(self, need: Need, budget: float) -> bool:
        """Whether a caption can be decoded within ``budget`` bytes, alone if need be."""
        try:
            self._most(1, need, budget)
        except DeviceError:
            return False
        return True

    def layout(self, waiting: Sequence[Need], before: Need | None, budget: float) -> Layout:
        """The layout of most slots within ``budget`` bytes.

        It is for all that wait and for what was laid out before; where that costs slots, for less.

        Args:
            waiting: what captions need; ``budget`` holds the first of them.
            before: what was laid out last, or None.
            budget: bytes for keys and values.
        """
        needs = [waiting[0], reduce(Need.joined, waiting)]
        if before is not None:
            needs.append(needs[-1].joined(before))
        layouts = [self._most(self.slots, need, budget) for need in needs if self.holds(need, budget)]
        most = max(layout.slots for layout in layouts)
        chosen = next(layout for layout in reversed(layouts) if layout.slots == most)
        if chosen.slots == self._shape.slots:
            self._next_try = math.inf
        elif self._next_try == math.inf:
            self._try_later(RETRY_SECONDS if chosen.slots > self._tried_from else 2 * self._wait)
        self._tried_from = 0
        return chosen

    def lower(self, slots: int) -> None:
        """Lay out no more than ``slots`` until the next try: with more the device ran out of memory."""
        self.slots = slots
        since_try = time.monotonic() - self._last_try
        self._try_later(2 * self._wait if since_try <= self._wait else RETRY_SECONDS)

    @property
    def due(self) -> bool:
        """Whether it is time to try more slots than are laid out."""
        return time.monotonic() >= self._next_try

    def try_more(self, slots: int, waiting: Sequence[Need], budget: float) -> bool:
        """Whether memory laid out anew is likely to give more than ``slots``; to be asked when ``due``.

        Args:
            slots: how many are laid out.
            waiting: what captions that wait need.
            budget: bytes for keys and values, those laid out included.
        """
        more, need = min(2 * self.slots, self._shape.slots), reduce(Need.joined, waiting)
        if not self.holds(need, budget) or self._most(more, need, budget).slots <= slots:
            self._try_later(2 * self._wait)
            return False
        self.slots, self._tried_from = more, slots
        self._next_try, self._last_try = math.inf, time.monotonic()
        return True

    def wait_for_memory(self) -> bool:
        """Pause, because not a single caption can be decoded now; False if that has lasted too long."""
        now = time.monotonic()
        if self._short_since is None:
            self._short_since = now
        if now - self._short_since >= PATIENCE_SECONDS:
            return False
        time.sleep(PAUSE_SECONDS)
        return True

    def note_progress(self) -> None:
        """Captions are being decoded: a later wait for memory starts anew."""
        self._short_since = None

    def _most(self, slots: int, need: Need, budget: float) -> Layout:
        return replace(self._shape, slots=slots).layout(self._keys, need, budget)

    def _try_later(self, seconds: float) -> None:
        self._wait = min(seconds, LONGEST_RETRY_SECONDS)
        self._next_try = time.monotonic() + self._wait
