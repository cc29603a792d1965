"""Training on the driver's side: Ctrl-C under Ray Train, whose own handler would make it look like success."""

import os
import signal
import threading
import time

import pytest

from jsfree.errors import StageError
from ray_jobs.stages.train import _run_in_thread


def test_a_signal_ends_the_wait_for_training_with_the_handler_of_the_driver():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            _run_in_thread(lambda: time.sleep(20))
        assert time.monotonic() - started < 10
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_training_raises_is_raised():
    def failing() -> None:
        raise StageError("no more memory")

    with pytest.raises(StageError, match="no more memory"):
        _run_in_thread(failing)
