"""Runs a step in a process of its own, with a time limit: a hang or a CUDA fault costs that step and no other.

Steps are forked from a process that has imported the libraries, which would take seconds in each, but has not touched
CUDA. Where an import did touch it, torch refuses to use CUDA in a forked process, and steps are started afresh.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from gpu.report import Message, Report
from gpu.scale import Scale

PRELOADED = (
    "torch",
    "torchvision",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava",
    "open_clip",
    "peft",
    "jsfree.stages.captioning",
    "jsfree.stages.scoring",
    "jsfree.dpo.loop",
)
UNUSABLE_FORK = "CUDA cannot be used in a forked process"
LOG_TAIL = 4000
"""Characters of a failed step's log that are kept."""
EXIT_SECONDS = 10
"""For a step that is done to free the device and exit."""
GRACE_SECONDS = 3
"""Between asking a step to end, upon which it writes where it was, and killing it."""


@dataclass(frozen=True)
class Step:
    """A step of the check."""

    name: str
    work: str
    """``module:function``, called with a ``Scale`` and a ``Report``."""
    limit: float
    """Seconds."""


@dataclass
class Outcome:
    """What became of a step; ``status`` is ``done``, ``failed``, ``timeout`` or ``skipped``."""

    status: str = "done"
    seconds: float = 0.0
    limit: float = 0.0
    reason: str = ""
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    headlines: dict[str, None] = field(default_factory=dict)
    log: str = ""

    def receive(self, message: Message) -> None:
        """Take in a finding."""
        kind, name, value = message
        if kind == "reason":
            self.status, self.reason = name, value
        else:
            getattr(self, kind)[name] = value

    def settle(self) -> None:
        """Fail a step that came to its end with failed checks or parts."""
        failed = [*(name for name, check in self.checks.items() if not check["passed"]), *self.failures]
        if failed and self.status == "done":
            self.status, self.reason = "failed", f"{len(failed)} failed: {'; '.join(failed)}"

    def as_json(self) -> dict[str, Any]:
        """The findings, without what is empty."""
        found = {name: value for name, value in asdict(self).items() if value and name != "headlines"}
        return {**found, "headline": ", ".join(self.headlines)} if self.headlines else found


def preload() -> None:
    """Import what steps need; a library that is missing fails the steps that need it."""
    for name in PRELOADED:
        with suppress(Exception):
            importlib.import_module(name)


class Runner:
    """Runs steps one after the other."""

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        self._method: Literal["fork", "spawn"] = "fork"

    def run(self, step: Step, seconds: float) -> Outcome:
        """Run a step for at most so many seconds."""
        outcome = self._attempt(step, seconds)
        if outcome.reason == UNUSABLE_FORK and self._method == "fork":
            self._method = "spawn"
            outcome = self._attempt(step, seconds)
        outcome.settle()
        return outcome

    def _attempt(self, step: Step, seconds: float) -> Outcome:
        outcome, started = Outcome(limit=seconds), time.monotonic()
        context = multiprocessing.get_context(self._method)
        with tempfile.TemporaryDirectory(prefix="gpu-step-") as folder:
            log = Path(folder) / "log"
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(step, self._scale, sender, str(log)))
            process.start()
            sender.close()
            try:
                if _received(receiver, outcome, started + seconds):
                    process.join(EXIT_SECONDS)
                else:
                    outcome.status, outcome.reason = "timeout", f"cut off after {seconds:.0f} s"
            finally:
                _end(process)
            if process.exitcode and outcome.status == "done":
                outcome.status, outcome.reason = "failed", f"the process ended with exit code {process.exitcode}"
            outcome.seconds = time.monotonic() - started
            if outcome.status != "done" or outcome.failures:
                outcome.log = log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:] if log.exists() else ""
        return outcome


def _received(receiver: Connection, outcome: Outcome, deadline: float) -> bool:
    """Take in findings until the step's end; False if the deadline comes first."""
    with suppress(EOFError):
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            outcome.receive(receiver.recv())
        return False
    return True


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a step and all that it started, compilers among them."""
    assert process.pid is not None
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.join(GRACE_SECONDS)


def _run(step: Step, scale: Scale, connection: Connection, log: str) -> None:
    """The body of a step's process."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, force=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.register(signal.SIGTERM, chain=True)
    try:
        if scale.device == "cuda" and _forked_after_cuda():
            connection.send(("reason", "failed", UNUSABLE_FORK))
            return
        _prepare(scale)
        module, name = step.work.split(":")
        getattr(importlib.import_module(module), name)(scale, Report(connection.send))
    except ImportError as error:
        connection.send(("reason", "skipped", f"{error}; 'make gpu-kit' collects what a machine lacks"))
    except BaseException as error:  # noqa: BLE001 - told to the parent, whatever it is
        traceback.print_exc()
        connection.send(("reason", "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))
    finally:
        sys.stderr.flush()
        connection.close()


def _forked_after_cuda() -> bool:
    import torch

    return bool(getattr(torch.cuda, "_is_in_bad_fork", lambda: False)())


def _prepare(scale: Scale) -> None:
    """Float32 is to be float32: no TF32, in convolutions neither."""
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if scale.device == "cpu":
        torch.set_num_threads(1)
