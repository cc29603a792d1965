"""The GPU's name and limits: bytes and operations per second. Also the clock and memory peak that steps share."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpu.report import Report
from gpu.scale import Scale
from jsfree.errors import ConfigError
from jsfree.gpus import cuda_error, driver_version
from jsfree.sizing import rates

GIB = 2**30


def measure(scale: Scale, report: Report) -> None:
    """Step ``device``."""
    if scale.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"{cuda_error()}; --tiny needs no GPU")
    report.figure("hardware", hardware(scale))
    report.figure("name", name(scale))
    if scale.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        report.figure("driver", driver_version())
        report.figure("cuda", str(torch.version.cuda))
        report.figure("compute_capability", f"{properties.major}.{properties.minor}")
        report.figure("multiprocessors", properties.multi_processor_count)
        report.figure("memory_gib", properties.total_memory / GIB)
        report.figure("free_gib", torch.cuda.mem_get_info()[0] / GIB)
    bytes_a_second = bandwidth(scale)
    report.figure("copy_bytes_a_second", bytes_a_second)
    report.headline(f"{name(scale)}, {bytes_a_second / 1e12:.2f} TB/s")
    for dtype in (torch.bfloat16, torch.float32):
        operations = matrix_rate(scale, dtype)
        report.figure(f"matrix_operations_a_second_{str(dtype).removeprefix('torch.')}", operations)
        report.headline(f"{operations / 1e12:.3g} TFLOP/s in {str(dtype).removeprefix('torch.')}")
    if scale.device == "cuda":
        sheet = kind(scale)
        report.predict("memory bandwidth (data sheet)", sheet.bandwidth, bytes_a_second, "bytes/s")
        report.predict("bfloat16 (data sheet)", sheet.flops, matrix_rate(scale, torch.bfloat16), "operations/s")


def name(scale: Scale) -> str:
    """The device's name."""
    return torch.cuda.get_device_name() if scale.device == "cuda" else f"{os.cpu_count()} CPU {platform.machine()}"


def hardware(scale: Scale) -> str:
    """The device in the form used in names of results."""
    plain = name(scale) if scale.device == "cuda" else f"{os.cpu_count()}cpu-{platform.machine()}"
    return plain.lower().replace(" ", "-")


def kind(scale: Scale) -> rates.GpuKind:
    """The device from preflight's table, or from its measured limits if the table lacks it."""
    try:
        return rates.gpu_named(name(scale))
    except ConfigError:
        return rates.GpuKind(0, bandwidth(scale), matrix_rate(scale, torch.bfloat16), ())


def bandwidth(scale: Scale) -> float:
    """Bytes per second of a copy within the device, counting read and written bytes."""
    source = torch.empty(scale.copied_bytes, dtype=torch.uint8, device=scale.device).random_(0, 255)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds_of(lambda: target.copy_(source), scale)


def matrix_rate(scale: Scale, dtype: torch.dtype) -> float:
    """Multiplications and additions per second of a large square matrix product."""
    left, right = (torch.randn(scale.matrix, scale.matrix, device=scale.device).to(dtype) for _ in range(2))
    return 2 * scale.matrix**3 / seconds_of(lambda: left @ right, scale)


def seconds_of(work: Callable[[], object], scale: Scale, repeat: int = 5) -> float:
    """Median seconds of ``repeat`` runs, after two warm-up runs."""
    seconds = []
    for number in range(repeat + 2):
        started = now(scale)
        work()
        if number >= 2:
            seconds.append(now(scale) - started)
    return statistics.median(seconds)


def now(scale: Scale) -> float:
    """The time once the device has finished all work."""
    if scale.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Peak:
    """Peak memory of tensors on the device since construction; None on a CPU."""

    scale: Scale

    def __post_init__(self) -> None:
        self.before = 0
        if self.scale.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()

    @property
    def bytes(self) -> int | None:
        """Peak bytes, including those allocated before."""
        return torch.cuda.max_memory_allocated() if self.scale.device == "cuda" else None

    @property
    def beyond(self) -> int | None:
        """Peak bytes beyond those allocated before."""
        return torch.cuda.max_memory_allocated() - self.before if self.scale.device == "cuda" else None


def release(scale: Scale) -> None:
    """Return unused memory to the device."""
    import gc

    gc.collect()
    if scale.device == "cuda":
        torch.cuda.empty_cache()
