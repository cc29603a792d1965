"""A thread that decodes the requests of many callers: clients of a server, or the shards of a worker.

Only this thread steps the engine. Between two steps it takes new requests and drops cancelled ones. It ends when there
is nothing to do, and starts again with the next request.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.requests import Caption, Drawn, Request, StepResult
from jsfree.decoding.timing import Timing
from jsfree.errors import DecodingError, NoTokenError

log = logging.getLogger(__name__)
Listener = Callable[[Drawn], None]


@dataclass
class _Submitted:
    """A request, and who waits for it.

    Attributes:
        submitted: when it was submitted, in seconds of ``time.monotonic``.
        started: when the step began in which its first token was drawn.
        first_token: when that step ended.
    """

    request: Request
    listener: Listener | None
    future: Future[Caption] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    first_token: float = 0.0

    def timed(self, caption: Caption, now: float) -> Caption:
        """The finished caption with its timing."""
        if self.started is None:  # no token was drawn
            return caption
        times = (each - self.submitted for each in (self.started, self.first_token, now))
        return replace(caption, timing=Timing(*times))


class DecodingLoop:
    """Decodes requests that are submitted from any thread."""

    def __init__(self, engine: DualPathEngine, stall_seconds: float = math.inf) -> None:
        """Prepare; the thread starts with the first request.

        Args:
            engine: the engine; only this loop may step it.
            stall_seconds: a step that takes longer counts as a problem.
        """
        self._engine = engine
        self._stall_seconds = stall_seconds
        self._changed = threading.Condition()
        self._batch_lock = threading.Lock()
        self._incoming: list[_Submitted] = []
        self._submitted: dict[str, _Submitted] = {}
        self._thread: threading.Thread | None = None
        self._ended = False
        self._closing = False
        self._cause: BaseException | None = None
        self._last_step = time.monotonic()

    def submit(
        self, requests: Sequence[Request], listeners: Sequence[Listener | None] | None = None
    ) -> list[Future[Caption]]:
        """Queue requests, whose ids must be unique among all callers; cancelling a future frees its slot.

        Args:
            requests: the requests.
            listeners: for each request a function that the decoding thread calls with every token but the last, which
                is in the caption. It must return quickly and must not raise.

        A future raises DeviceError if its request could never fit into memory, NoTokenError if the model gives no token
        any probability, and DecodingError if there is no memory at the moment or the loop ends.

        Raises:
            DecodingError: the loop has ended.
        """
        submitted = [
            _Submitted(request, listener)
            for request, listener in zip(requests, listeners or [None] * len(requests), strict=True)
        ]
        with self._changed:
            self._check_open()
            self._incoming.extend(submitted)
            if self._thread is None:
                self._last_step = time.monotonic()
                self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return [each.future for each in submitted]

    def decode(self, requests: Iterable[Request]) -> list[Caption | NoTokenError]:
        """Decode requests; in their order a caption each, or the error if the model gives it no token. Thread-safe.

        Requests are drawn from the iterable as slots become free, so that images can be read while others are decoded.
        The requests of one caller come after those of the caller before.

        Raises:
            DeviceError: a request does not fit into memory.
            Exception: the error that ended the loop.
        """
        futures: list[Future[Caption]] = []
        try:
            with self._batch_lock:
                for request in requests:
                    self._wait_for_space()
                    futures += self.submit([request])
            return [_result(future) for future in futures]
        except DecodingError as error:
            raise (error.__cause__ or error) from None
        finally:
            for future in futures:  # once one request has failed, the others are not needed
                future.cancel()

    def problem(self) -> str | None:
        """Why the loop cannot decode; None if it can."""
        if self._ended:
            return "the decoding loop has ended; the replica's log has the reason"
        stalled = time.monotonic() - self._last_step if self._thread is not None else 0.0
        return f"the decoding has not advanced for {stalled:.0f} s" if stalled > self._stall_seconds else None

    def close(self) -> None:
        """End the loop after the current step; unfinished requests fail."""
        with self._changed:
            self._closing = True
            if self._thread is None:
                self._ended = True
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._ended:
            raise DecodingError("the decoding loop has ended") from self._cause

    def _wait_for_space(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._engine.queue_space > len(self._incoming))

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while self._take_requests():
                self._last_step = time.monotonic()
                self._drop_cancelled()
                self._set_results(self._engine.step())
        except BaseException as raised:  # noqa: BLE001 - passed on to all waiting callers
            log.error("decoding has ended: %r", raised)
            error = raised
        if error is not None or self._closing:
            self._end(error)

    def _take_requests(self) -> bool:
        """Submit incoming requests to the engine; whether there is anything to decode."""
        with self._changed:
            while self._incoming:
                submitted = self._incoming.pop(0)
                try:
                    self._engine.submit(submitted.request)
                except Exception as error:  # noqa: BLE001 - passed on to the request's caller
                    if submitted.future.set_running_or_notify_cancel():
                        submitted.future.set_exception(error)
                else:
                    self._submitted[submitted.request.request_id] = submitted
            self._changed.notify_all()
            if self._closing or not self._engine.active:
                self._thread = None
                return False
            return True

    def _drop_cancelled(self) -> None:
        for request_id in [name for name, each in self._submitted.items() if each.future.cancelled()]:
            self._engine.cancel(request_id)
            del self._submitted[request_id]

    def _set_results(self, result: StepResult) -> None:
        now = time.monotonic()
        for drawn in result.drawn:
            submitted = self._submitted.get(drawn.request_id)
            if submitted is not None and submitted.started is None:
                submitted.started, submitted.first_token = self._last_step, now
        for caption in result.finished:
            submitted = self._submitted.pop(caption.request_id)
            if submitted.future.set_running_or_notify_cancel():  # False if it was cancelled during the step
                submitted.future.set_result(submitted.timed(caption, now))
        for request_id, error in result.failed:
            future = self._submitted.pop(request_id).future
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        for drawn in result.drawn:
            submitted = self._submitted.get(drawn.request_id)
            if submitted is not None and submitted.listener is not None:
                submitted.listener(drawn)

    def _end(self, cause: BaseException | None) -> None:
        """Fail all unfinished requests, so that no caller waits for ever."""
        with self._changed:
            self._ended, self._cause = True, cause
            unfinished = [each.future for each in (*self._submitted.values(), *self._incoming)]
            self._submitted.clear()
            self._incoming.clear()
            self._changed.notify_all()
        for future in unfinished:
            if not future.done() and future.set_running_or_notify_cancel():
                error = DecodingError("the decoding loop has ended")
                error.__cause__ = cause
                future.set_exception(error)


def _result(future: Future[Caption]) -> Caption | NoTokenError:
    try:
        return future.result()
    except NoTokenError as error:
        return error
