"""SIGINT and SIGTERM end a command with an exit code and a message, and clean up first."""

import signal
import subprocess
import sys

import pytest

from ray_jobs import signals

COMMAND = """
import sys, time
from ray_jobs import signals

signals.{install}()
try:
    print("ready", flush=True)
    time.sleep(60)
finally:
    print("cleaned up", flush=True)
"""
LIBRARY = """
import time
from ray_jobs import signals

with signals.exit_on_sigterm():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
"""


def stopped_by(number: signal.Signals, code: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that gets a signal."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_command_exits_with_a_message_and_the_signals_exit_code(number):
    code, output, errors = stopped_by(number, COMMAND.format(install="exit_on_signals"))
    assert (code, output) == (signals.STOPPED + number, "cleaned up\n")
    assert errors == "stopped; finished work is kept, run the same command again to continue\n"


def test_a_server_is_interrupted_by_sigterm():
    code, output, errors = stopped_by(signal.SIGTERM, COMMAND.format(install="interrupt_on_signals"))
    assert output == "cleaned up\n"
    assert code != 0
    assert "KeyboardInterrupt" in errors


def test_a_run_started_from_python_is_cleaned_up_on_sigterm():
    assert stopped_by(signal.SIGTERM, LIBRARY)[:2] == (signals.STOPPED + signal.SIGTERM, "cleaned up\n")


def test_an_installed_handler_of_sigterm_is_kept():
    def handler(*_):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with signals.exit_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is handler
        with signals.sigterm_handler_kept():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
