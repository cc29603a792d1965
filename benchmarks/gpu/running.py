"""Runs each step in its own process with a time limit, so that a hang or a CUDA fault affects no other step.

Steps are forked from a process that has imported the libraries, which takes seconds, but has not initialised CUDA. If
an import did initialise it, torch refuses to use CUDA in a forked process, and steps are spawned instead.
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
"""Time for a finished step to free the device and exit."""
GRACE_SECONDS = 3
"""Time between SIGTERM, on which a step writes its stack, and SIGKILL."""


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
    """Result of a step; ``status`` is ``done``, ``failed``, ``timeout`` or ``skipped``."""

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
        """Add a message of the step."""
        kind, name, value = message
        if kind == "reason":
            self.status, self.reason = name, value
        else:
            getattr(self, kind)[name] = value

    def settle(self) -> None:
        """Mark a finished step as failed if any of its checks or parts failed."""
        failed = [*(name for name, check in self.checks.items() if not check["passed"]), *self.failures]
        if failed and self.status == "done":
            self.status, self.reason = "failed", f"{len(failed)} failed: {'; '.join(failed)}"

    def as_json(self) -> dict[str, Any]:
        """The non-empty results."""
        found = {name: value for name, value in asdict(self).items() if value and name != "headlines"}
        return {**found, "headline": ", ".join(self.headlines)} if self.headlines else found


def preload() -> None:
    """Import the steps' libraries; errors surface in the steps that need them."""
    for name in PRELOADED:
        with suppress(Exception):
            importlib.import_module(name)


class Runner:
    """Runs steps one after another."""

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        self._method: Literal["fork", "spawn"] = "fork"

    def run(self, step: Step, seconds: float) -> Outcome:
        """Run a step for at most ``seconds``."""
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
    """Receive messages until the end of the step; False if the deadline comes first."""
    with suppress(EOFError):
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            outcome.receive(receiver.recv())
        return False
    return True


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a step with its child processes, such as compilers."""
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
    except BaseException as error:  # noqa: BLE001 - sent to the parent process
        traceback.print_exc()
        connection.send(("reason", "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))
    finally:
        sys.stderr.flush()
        connection.close()


def _forked_after_cuda() -> bool:
    import torch

    return bool(getattr(torch.cuda, "_is_in_bad_fork", lambda: False)())


def _prepare(scale: Scale) -> None:
    """Disable TF32 in matrix products and convolutions."""
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if scale.device == "cpu":
        torch.set_num_threads(1)
