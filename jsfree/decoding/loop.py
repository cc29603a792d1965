"""The thread that decodes for all who ask: a server's clients, or the shards that a worker has under way.

One thread owns the engine and steps it; requests come in, and those that nobody waits for are dropped, between two
steps. It ends when there is nothing to do, and begins again with the next request.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.requests import Caption, Request, Step
from jsfree.errors import DecodingError, NoTokenError

log = logging.getLogger(__name__)


class DecodingLoop:
    """Decodes what any thread submits."""

    def __init__(self, engine: DualPathEngine, stall_seconds: float = math.inf) -> None:
        """Prepare; the thread starts with the first request.

        Args:
            engine: nobody else may step it.
            stall_seconds: a step that takes longer is a ``problem``.
        """
        self._engine = engine
        self._stall_seconds = stall_seconds
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        self._incoming: list[tuple[Request, Future[Caption]]] = []
        self._under_way: dict[str, Future[Caption]] = {}
        self._thread: threading.Thread | None = None
        self._ended = False
        self._closing = False
        self._cause: BaseException | None = None
        self._beat = time.monotonic()

    def submit(self, requests: Sequence[Request]) -> list[Future[Caption]]:
        """Queue requests, whose ids are nobody else's; a future that is cancelled frees its slot.

        A future raises what is wrong with its request: DeviceError if it could never fit into the memory,
        NoTokenError if the model gives it no token, DecodingError if there is no memory now, or if all decoding ends.

        Raises:
            DecodingError: the decoding has ended.
        """
        futures: list[Future[Caption]] = [Future() for _ in requests]
        with self._changed:
            self._require_open()
            self._incoming.extend(zip(requests, futures, strict=True))
            if self._thread is None:
                self._beat = time.monotonic()
                self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return futures

    def decode(self, requests: Iterable[Request]) -> list[Caption | NoTokenError]:
        """Captions of requests, in their order; the error in place of one for which the model gives no token.

        Any number of threads may call. Requests are taken as slots ask for them, those of one caller after those of
        another: they may be made, and their images read, while others are decoded.

        Raises:
            DeviceError: there is no memory for a request.
            Exception: what ended the decoding.
        """
        futures: list[Future[Caption]] = []
        try:
            with self._turn:
                for request in requests:
                    self._wait_for_room()
                    futures += self.submit([request])
            return [_outcome(future) for future in futures]
        except DecodingError as error:
            raise (error.__cause__ or error) from None
        finally:
            for future in futures:  # nobody waits for the others when one has failed
                future.cancel()

    def problem(self) -> str | None:
        """Why the loop does not decode; None while it does, or would."""
        if self._ended:
            return "the decoding loop has ended; the replica's log has the reason"
        still = time.monotonic() - self._beat if self._thread is not None else 0.0
        return f"the decoding has not advanced for {still:.0f} s" if still > self._stall_seconds else None

    def close(self) -> None:
        """End after the step under way; what is being decoded is refused."""
        with self._changed:
            self._closing = True
            if self._thread is None:
                self._ended = True
            self._changed.notify_all()

    def _require_open(self) -> None:
        if self._ended:
            raise DecodingError("the decoding loop has ended") from self._cause

    def _wait_for_room(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._engine.room > len(self._incoming))

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while self._admit():
                self._beat = time.monotonic()
                self._drop_abandoned()
                self._hand_out(self._engine.step())
        except BaseException as raised:  # noqa: BLE001 - told to all who wait
            log.error("decoding has ended: %r", raised)
            error = raised
        if error is not None or self._closing:
            self._end(error)

    def _admit(self) -> bool:
        """Take in what has come; whether to go on."""
        with self._changed:
            while self._incoming:
                request, future = self._incoming.pop(0)
                try:
                    self._engine.submit(request)
                except Exception as error:  # noqa: BLE001 - of this request: told to who asked
                    if future.set_running_or_notify_cancel():
                        future.set_exception(error)
                else:
                    self._under_way[request.request_id] = future
            self._changed.notify_all()
            if self._closing or not self._engine.active:
                self._thread = None
                return False
            return True

    def _drop_abandoned(self) -> None:
        for request_id in [name for name, future in self._under_way.items() if future.cancelled()]:
            self._engine.cancel(request_id)
            del self._under_way[request_id]

    def _hand_out(self, step: Step) -> None:
        for caption in step.finished:
            future = self._under_way.pop(caption.request_id)
            if future.set_running_or_notify_cancel():  # False: it was cancelled during this very step
                future.set_result(caption)
        for request_id, error in step.failed:
            future = self._under_way.pop(request_id)
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _end(self, cause: BaseException | None) -> None:
        """Refuse what is under way: nobody may wait for a loop that has ended."""
        with self._changed:
            self._ended, self._cause = True, cause
            waiting = [*self._under_way.values(), *(future for _, future in self._incoming)]
            self._under_way.clear()
            self._incoming.clear()
            self._changed.notify_all()
        for future in waiting:
            if not future.done() and future.set_running_or_notify_cancel():
                refusal = DecodingError("the decoding loop has ended")
                refusal.__cause__ = cause
                future.set_exception(refusal)


def _outcome(future: Future[Caption]) -> Caption | NoTokenError:
    try:
        return future.result()
    except NoTokenError as error:
        return error
