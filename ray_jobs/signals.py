"""The handlers of SIGINT (Ctrl-C) and SIGTERM; only this module installs any."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STOPPED = 128
"""A command that a signal stopped exits with this plus the signal's number, as in shells."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_on_signals() -> None:
    """Exit with ``STOPPED`` plus the signal's number and a message on stderr; a second signal kills the process."""
    stderr = os.dup(2)  # while Ray starts, file descriptor 2 is redirected

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.write(stderr, b"stopped; finished work is kept, run the same command again to continue\n")
        raise SystemExit(STOPPED + number)

    _install(stop)


def interrupt_on_signals() -> None:
    """Raise ``KeyboardInterrupt``, which Ray passes on while it waits in native code; a second signal kills."""

    def interrupt(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    _install(interrupt)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise ``SystemExit`` in the block, so that it cleans up, unless another handler is installed.

    Does nothing outside the main thread, where no handler can be installed.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(STOPPED + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def sigterm_handler_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM, which ``ray.init`` replaces, unless it is the default."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def leave(code: int) -> NoReturn:
    """Exit at once, without the slow shutdown of Python and its libraries: `ray job stop` kills after three seconds."""
    atexit._run_exitfuncs()  # stops a Ray session, also one that has only half started
    sys.stdout.flush()
    os._exit(code)


def _install(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)
