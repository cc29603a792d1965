"""How far a stage over shards is: counted by the driver, shown to a person, in ``run.json`` and as Ray's metrics."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ParamSpec
from urllib.parse import quote

log = logging.getLogger(__name__)
SHOW_SECONDS = 1.0
WINDOW_SECONDS, WINDOW_SHARDS = 120.0, 32
"""The present speed is that of so many seconds, or of so many shards where they take longer."""
GAUGES = {
    "rows": "rows done, those that failed among them",
    "rows_in_all": "rows of the stage",
    "rows_failed": "rows that failed",
    "rows_per_second": "rows done a second",
    "tokens_per_second": "tokens made, scored or trained on a second",
    "seconds_left": "seconds until the stage is done",
    "actors": "replicas alive",
}
TAG_CHARACTERS = "".join(chr(code) for code in range(32, 127) if chr(code) != "%")
Show = Callable[["Figures"], None]
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Figures:
    """How far a stage is, and how fast."""

    rows: int
    """Rows done, those that failed among them."""
    rows_in_all: int
    rows_failed: int
    rows_per_second: float
    tokens_per_second: float
    seconds_left: float | None
    """None while it cannot be told."""
    actors: int


class Counts:
    """What has been done of a stage."""

    def __init__(self, rows_in_all: int) -> None:
        self._rows_in_all = rows_in_all
        self._rows = self._failed = 0
        self._recent: deque[tuple[float, int, int]] = deque()
        self._lock = threading.Lock()

    def before(self, rows: int, failed: int) -> None:
        """Count what was done before this driver came."""
        self._rows += rows
        self._failed += failed

    def add(self, rows: int, failed: int, tokens: int) -> None:
        """Count a shard that is done."""
        with self._lock:
            self._rows += rows
            self._failed += failed
            now = time.monotonic()
            self._recent.append((now, rows, tokens))
            while len(self._recent) > WINDOW_SHARDS and now - self._recent[0][0] > WINDOW_SECONDS:
                self._recent.popleft()

    def began(self) -> None:
        """Note that actors are up; from now on speed is reckoned."""
        with self._lock:
            if not self._recent:
                self._recent.append((time.monotonic(), 0, 0))

    def figures(self, actors: int) -> Figures:
        """How far it is now."""
        with self._lock:
            recent = list(self._recent)
            rows, failed = self._rows, self._failed
        seconds = time.monotonic() - recent[0][0] if recent else 0.0
        # The first one only tells when the others began.
        speed, tokens = (sum(each[at] for each in recent[1:]) / seconds if seconds else 0.0 for at in (1, 2))
        left = (self._rows_in_all - rows) / speed if speed else None
        return Figures(rows, self._rows_in_all, failed, speed, tokens, left, actors)


class Clock:
    """Shares the time in which a worker has shards under way out among them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[object, float] = {}
        self._settled = time.perf_counter()

    @contextmanager
    def account(self) -> Iterator[Callable[[], float]]:
        """A shard's account; yields what tells its seconds so far."""
        key = object()
        with self._lock:
            self._settle()
            self._seconds[key] = 0.0

        def seconds() -> float:
            with self._lock:
                self._settle()
                return self._seconds[key]

        try:
            yield seconds
        finally:
            with self._lock:
                self._settle()
                del self._seconds[key]

    def _settle(self) -> None:
        now = time.perf_counter()
        for key in self._seconds:
            self._seconds[key] += (now - self._settled) / len(self._seconds)
        self._settled = now


@contextmanager
def shown(counts: Counts, board: Any, work: str, show: Show) -> Iterator[None]:
    """Show the counts every second until the block ends, and once more then."""
    import ray

    ended = threading.Event()

    def figures() -> Figures:
        with suppress(ray.exceptions.RayError):
            actors = ray.get(board.alive.remote(work), timeout=5)
            if actors:
                counts.began()
            return counts.figures(actors)
        return counts.figures(0)

    tell = harmless(lambda: show(figures()), "progress")

    def go_on() -> None:
        while not ended.wait(SHOW_SECONDS):
            tell()

    teller = threading.Thread(target=go_on, name="progress", daemon=True)
    teller.start()
    try:
        yield
        tell()
    finally:
        ended.set()
        teller.join()


def harmless(display: Callable[Arguments, None], what: str) -> Callable[Arguments, None]:
    """``display`` with its errors logged, the first with its traceback and the others not at all.

    A broken progress display must neither fail a stage nor fill its log.
    """
    failed = threading.Event()

    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        try:
            display(*arguments, **options)
        except Exception:
            if not failed.is_set():
                log.exception("%s cannot be shown; this is logged once", what)
            failed.set()

    return call


def ascii_tag(text: str) -> str:
    """A text as a tag of Ray's metrics, which are ASCII: other characters, and ``%``, are percent-encoded."""
    return quote(text, safe=TAG_CHARACTERS, errors="surrogatepass")


class Gauges:
    """The figures among Ray's metrics, ``ray_jsfree_*`` on the port of the driver's node."""

    def __init__(self, run: str, stage: str) -> None:
        from ray.util.metrics import Gauge

        tags = {"run": ascii_tag(run), "stage": ascii_tag(stage)}
        self._gauges = {}
        for name, what in GAUGES.items():
            gauge = Gauge(f"jsfree_{name}", what, tag_keys=tuple(tags))
            gauge.set_default_tags(tags)
            self._gauges[name] = gauge

    def set(self, figures: Figures) -> None:
        """Set them all."""
        for name, gauge in self._gauges.items():
            value = getattr(figures, name)
            gauge.set(math.nan if value is None else value)
