"""How benchmarks measure and report: CPU time of one thread, variants in turn, ratios with their spread.

Wall time on a shared machine says nothing here; the CPU time of two variants that take turns in one process does.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ray_jobs.quiet import silence_libraries

silence_libraries()  # benchmarks import this module before libraries print anything

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


def in_turn(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant in each of ``rounds``, after one run of each that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            started = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - started)
    return seconds


def ratio(above: list[float], below: list[float], target: float) -> dict[str, float]:
    """The ratio of two variants, round by round, with what is asked of it."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each), "target": target}


class MemoryGrowth:
    """How far this process's resident memory has grown beyond its size when this was made (Linux)."""

    def __init__(self) -> None:
        """Return freed memory to the system, and start a new peak."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
        self.start = resident("VmRSS")

    def bytes(self) -> float:
        """Bytes at the peak so far, beyond those at the start."""
        return resident("VmHWM") - self.start


def resident(name: str) -> float:
    """Bytes of this process: ``VmRSS`` is what is resident now, ``VmHWM`` the peak (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(name)).split()[1])


def hardware() -> str:
    """What is measured on, as in the results' names."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name().lower().replace(" ", "-")
    return f"{os.cpu_count()}cpu-{platform.machine()}"


def publish(
    name: str, ratios: Mapping[str, Any], figures: Mapping[str, Any], loads: list[float], date: str | None = None
) -> Path:
    """Write a dated result and print it as the last line.

    Args:
        date: day of the measurement, ISO 8601; today if it is not given.
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
    """Versions of those of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
