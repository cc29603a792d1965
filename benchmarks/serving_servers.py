"""The servers that ``serving.py`` compares: ``jsfree serve`` in several layouts, and vLLM's.

Each is a process with children, of which memory and CPU time are measured.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

READY_SECONDS = 600.0
STOP_SECONDS = 90
LAYOUTS: dict[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
    "serve": ({}, ()),
    # Streams as any Serve application sends them: without gRPC, and without the socket of serve/direct.py, whose path
    # is too long for a socket in this folder.
    "through_ray": ({"RAY_SERVE_PROXY_USE_GRPC": "0", "TMPDIR": "{folder}/" + "x" * 120}, ()),
    "haproxy": ({}, ("serve.haproxy=true",)),
}
"""By name of a layout: variables of the environment, and settings."""
VLLM = "vllm"


class Server:
    """A server process on a free port of this machine.

    Args:
        command: its command, in which ``{port}`` stands for the port.
        log: file for its output.
        variables: additions to the environment.
    """

    def __init__(self, command: Sequence[str], log: Path, variables: Mapping[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._log = log
        with log.open("w", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                [word.replace("{port}", str(self.port)) for word in command],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
            )

    def wait_until_ready(self) -> None:
        """Wait until it answers.

        Raises:
            RuntimeError: it has ended, or takes too long.
        """
        until = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(self._log.read_text(encoding="utf-8")[-4000:])
            time.sleep(0.5)

    def _is_ready(self) -> bool:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(self._address, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    @property
    def _address(self) -> str:
        return f"http://127.0.0.1:{self.port}/health"

    def processes(self) -> list[psutil.Process]:
        """The server's process and all below it."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def memory(self) -> float:
        """Resident MB of the processes that serve: replicas, ingress and proxy."""
        return sum(each.memory_info().rss for each in self.processes() if "ray::" in _name(each)) / 1e6

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far by name of process."""
        seconds: dict[str, float] = {}
        for each in self.processes():
            with suppress(psutil.Error):
                name, times = _name(each), each.cpu_times()
                seconds[name] = seconds.get(name, 0.0) + times.user + times.system
        return seconds

    def stop(self) -> None:
        """End it and what it started."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()


def jsfree(run: Path, layout: str, settings: Sequence[str], folder: Path) -> Server:
    """``jsfree serve`` for a run.

    Args:
        layout: one of ``LAYOUTS``.
        settings: ``serve.key=value`` settings besides those of the layout.
        folder: for its log.
    """
    variables, own = LAYOUTS[layout]
    variables = {name: value.replace("{folder}", str(folder)) for name, value in variables.items()}
    if "TMPDIR" in variables:
        Path(variables["TMPDIR"]).mkdir(parents=True, exist_ok=True)
    words = [word for override in (*own, *settings) for word in ("--set", override)]
    command = [sys.executable, "-m", "ray_jobs.cli", "serve", "--run", str(run), "--port", "{port}", *words]
    return Server(command, folder / f"{layout}.txt", variables)


def vllm(python: Path, model: Path, folder: Path) -> Server:
    """vLLM's server in float32 with its defaults, except that it starts without compiling the model.

    Args:
        python: interpreter of an environment with vLLM.
        model: a published model.
        folder: for its log and caches.
    """
    options = ["--served-model-name", "after", "--dtype", "float32", "--enforce-eager"]
    limits = ["--limit-mm-per-prompt", '{"image": 1, "video": 0}', "--generation-config", "vllm"]
    address = ["--host", "127.0.0.1", "--port", "{port}"]
    variables = {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(folder / "vllm"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    program = [str(python), "-m", "vllm.entrypoints.openai.api_server"]  # `vllm serve` refuses the builds for CPUs
    command = [*program, "--model", str(model), *options, *limits, *address]
    return Server(command, folder / f"{VLLM}.txt", variables)


def _name(process: psutil.Process) -> str:
    """The name of a process: for Ray's actors that of the class, otherwise of the program."""
    with suppress(psutil.Error):
        words = process.cmdline()
        return words[0].split()[0] if words and words[0].startswith("ray::") else process.name()
    return "ended"
