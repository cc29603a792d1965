"""Training on the driver's side: Ctrl-C under Ray Train, whose own handler would make it look like success."""

import os
import signal
import sys

import pytest

from ray_jobs.train_dpo import _own_sigint


def leave_like_ray_train(*_: object) -> None:
    sys.exit(0)


def test_ctrl_c_interrupts_training_and_the_handler_is_ours_again():
    kept = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _own_sigint():  # noqa: PT012
        signal.signal(signal.SIGINT, leave_like_ray_train)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is kept


def test_another_end_stays_what_it_is():
    kept = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended, _own_sigint():  # noqa: PT012
        signal.signal(signal.SIGINT, leave_like_ray_train)
        raise SystemExit(143)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGINT) is kept
