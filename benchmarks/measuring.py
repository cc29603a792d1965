"""Measurement and results of benchmarks: CPU time of one thread, variants in turn, ratios with their spread.

Wall time is meaningless on a shared machine; the ratio of the CPU times of variants that alternate in one process is
not.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "open_clip_torch",
    "torchmetrics",
    "ray",
    "deepspeed",
    "pyarrow",
    "trl",
    "peft",
)


def command_line(description: str | None) -> argparse.ArgumentParser:
    """A benchmark's parser, described by the first line of ``description``; silences libraries, so call it first."""
    from ray_jobs.quiet import silence_libraries  # not at the top: interop_peers.py runs without jsfree

    silence_libraries()
    return argparse.ArgumentParser(description=(description or "").splitlines()[0])


def in_turn(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant in each of ``rounds``, after one warm-up run of each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            started = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - started)
    return seconds


def ratio(above: list[float], below: list[float], target: float) -> dict[str, float]:
    """The ratio of two variants, round by round, with its target."""
    return spread([a / b for a, b in zip(above, below, strict=True)], target)


def spread(values: Sequence[float], target: float) -> dict[str, float]:
    """Median and range of repetitions, with their target."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "target": target}


def own_process(script: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Any:
    """The JSON on the last line of a script's output, run in its own process.

    Args:
        script: path of the script.
        arguments: its command line.
        environment: variables added to those of this process.

    Raises:
        RuntimeError: the script failed.
    """
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, **(environment or {})})
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class MemoryGrowth:
    """Growth of this process's resident memory since construction (Linux)."""

    def __init__(self) -> None:
        """Return freed memory to the system, and reset the peak."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
        self.start = resident("VmRSS")

    def bytes(self) -> float:
        """Bytes of the peak so far beyond the size at the start."""
        return resident("VmHWM") - self.start


def resident(name: str) -> float:
    """Resident bytes of this process: ``VmRSS`` now, ``VmHWM`` at the peak (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(name)).split()[1])


def hardware() -> str:
    """The GPU or CPU, in the form used in names of results."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name().lower().replace(" ", "-")
    return f"{os.cpu_count()}cpu-{platform.machine()}"


def publish(
    name: str, ratios: Mapping[str, Any], figures: Mapping[str, Any], loads: list[float], date: str | None = None
) -> Path:
    """Write a dated result and print it as the last line.

    Args:
        name: the benchmark.
        ratios: ratios by key, as of ``ratio``.
        figures: everything else.
        loads: the machine's load averages before and after.
        date: day of the measurement, ISO 8601; today by default.
    """
    date = date or datetime.now(UTC).date().isoformat()
    result = {
        "benchmark": name,
        "date": date,
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
        "load": loads,
        "command": shlex.join(["python", *sys.argv]),
        "ratios": ratios,
        "figures": figures,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}_{date}_{hardware()}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return path


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    installed = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed
