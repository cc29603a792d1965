"""Progress of a stage over shards: counted by the driver, for the console, ``run.json`` and Ray's metrics."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec
from urllib.parse import quote

log = logging.getLogger(__name__)
WINDOW_SECONDS, WINDOW_SHARDS = 120.0, 32
"""The speed is measured over this time, or over this number of shards if they take longer."""
GAUGES = {
    "rows": "rows done, including rows that failed",
    "rows_in_all": "rows of the stage",
    "rows_failed": "rows that failed",
    "rows_per_second": "rows done per second",
    "tokens_per_second": "tokens generated, scored or trained on per second",
    "seconds_left": "seconds until the stage is done",
    "actors": "replicas alive",
}
TAG_CHARACTERS = "".join(chr(code) for code in range(32, 127) if chr(code) != "%")
Show = Callable[["Figures"], None]
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Progress and speed of a stage; ``rows`` includes rows that failed."""

    rows: int
    rows_in_all: int
    rows_failed: int
    rows_per_second: float
    tokens_per_second: float
    seconds_left: float | None
    """None while the speed is unknown."""
    actors: int


@dataclass(frozen=True)
class _Done:
    """Rows and tokens of a shard, and when it was counted."""

    time: float
    rows: int
    tokens: int


class Counts:
    """Counts what is done of a stage of ``rows_in_all`` rows."""

    def __init__(self, rows_in_all: int) -> None:
        self._rows_in_all = rows_in_all
        self._rows = self._failed = 0
        self._recent: deque[_Done] = deque()
        self._lock = threading.Lock()

    def add_earlier(self, rows: int, failed: int) -> None:
        """Count a shard that was done by an earlier driver; it does not enter the speed."""
        self._rows += rows
        self._failed += failed

    def add(self, rows: int, failed: int, tokens: int) -> None:
        """Count a shard."""
        with self._lock:
            self._rows += rows
            self._failed += failed
            now = time.monotonic()
            self._recent.append(_Done(now, rows, tokens))
            while len(self._recent) > WINDOW_SHARDS and now - self._recent[0].time > WINDOW_SECONDS:
                self._recent.popleft()

    def start(self) -> None:
        """Start measuring the speed, at the first call."""
        with self._lock:
            if not self._recent:
                self._recent.append(_Done(time.monotonic(), 0, 0))

    def figures(self, actors: int) -> Figures:
        """Current progress and speed, with ``actors`` replicas alive."""
        with self._lock:
            recent = list(self._recent)
            rows, failed = self._rows, self._failed
        seconds = time.monotonic() - recent[0].time if recent else 0.0
        after_first = recent[1:]  # the first entry only marks the start of the window
        speed = sum(done.rows for done in after_first) / seconds if seconds else 0.0
        return Figures(
            rows=rows,
            rows_in_all=self._rows_in_all,
            rows_failed=failed,
            rows_per_second=speed,
            tokens_per_second=sum(done.tokens for done in after_first) / seconds if seconds else 0.0,
            seconds_left=(self._rows_in_all - rows) / speed if speed else None,
            actors=actors,
        )


class Clock:
    """Divides the time of a worker among the shards it has in progress."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[object, float] = {}
        self._updated = time.perf_counter()

    @contextmanager
    def account(self) -> Iterator[Callable[[], float]]:
        """Open the account of a shard; yields a function that returns its seconds so far."""
        key = object()
        with self._lock:
            self._update()
            self._seconds[key] = 0.0

        def seconds() -> float:
            with self._lock:
                self._update()
                return self._seconds[key]

        try:
            yield seconds
        finally:
            with self._lock:
                self._update()
                del self._seconds[key]

    def _update(self) -> None:
        now = time.perf_counter()
        for key in self._seconds:
            self._seconds[key] += (now - self._updated) / len(self._seconds)
        self._updated = now


def harmless(display: Callable[Arguments, None], what: str) -> Callable[Arguments, None]:
    """Wrap ``display`` so that its first error is logged with its traceback and later ones are ignored.

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
    """Percent-encode a text as a tag of Ray's metrics, which must be ASCII."""
    return quote(text, safe=TAG_CHARACTERS, errors="surrogatepass")


class Gauges:
    """The figures as Ray metrics, ``ray_jsfree_*``, on the metrics port of the driver's node."""

    def __init__(self, run: str, stage: str) -> None:
        from ray.util.metrics import Gauge

        tags = {"run": ascii_tag(run), "stage": ascii_tag(stage)}
        self._gauges = {}
        for name, description in GAUGES.items():
            gauge = Gauge(f"jsfree_{name}", description, tag_keys=tuple(tags))
            gauge.set_default_tags(tags)
            self._gauges[name] = gauge

    def set(self, figures: Figures) -> None:
        """Set all gauges."""
        for name, gauge in self._gauges.items():
            value = getattr(figures, name)
            gauge.set(math.nan if value is None else value)
