"""What Ctrl-C and SIGTERM do to a command."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

STOPPED = 128
"""Added to the number of the signal it is the exit code of a command that was stopped, as in shells."""


def stopper(stderr: int) -> Callable[[int, FrameType | None], None]:
    """A signal handler that says at once that the run is stopped, then exits; a second signal kills.

    Args:
        stderr: the file descriptor that the message goes to.
    """

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.write(stderr, b"stopped; what was finished stays, and the same command goes on from there\n")
        raise SystemExit(STOPPED + number)

    return stop


def leave(code: int) -> NoReturn:
    """Exit without taking Python and its libraries down piece by piece: `ray job stop` kills after three seconds."""
    atexit._run_exitfuncs()  # a Ray session that was only half started ends there
    sys.stdout.flush()
    os._exit(code)
