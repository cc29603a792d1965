"""Training on the driver. Ctrl-C must not be handled by Ray Train, whose handler would report success."""

import os
import signal
import threading
import time

import pytest

from jsfree.errors import StageError
from ray_jobs.stages.train import _run_in_thread


def test_a_signal_interrupts_training_and_keeps_the_drivers_handler():
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


def test_an_error_in_training_is_raised_on_the_driver():
    def failing() -> None:
        raise StageError("no more memory")

    with pytest.raises(StageError, match="no more memory"):
        _run_in_thread(failing)
