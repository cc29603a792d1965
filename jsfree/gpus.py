"""The GPU that a process was given: whether torch can use it, and clear words where it cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsfree.errors import DeviceError

if TYPE_CHECKING:
    import torch  # at run time only where it is asked: a process that reserved no GPU may need no torch

log = logging.getLogger(__name__)
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, its memory in bytes, and whether it computes in bfloat16 itself."""

    name: str
    memory: int
    bf16: bool


def device_of(gpus: float) -> str:
    """Where a process that reserved ``gpus`` computes.

    Raises:
        DeviceError: GPUs were reserved, but torch sees none.
    """
    if gpus == 0:
        return "cpu"
    visible_gpu(gpus)
    return "cuda"


def visible_gpu(gpus: float) -> Gpu:
    """The first GPU of this process, which reserved ``gpus`` of them.

    Raises:
        DeviceError: torch cannot use any.
    """
    import torch

    if not torch.cuda.is_available():
        raise DeviceError(f"{gpus:g} GPU reserved, but torch cannot use CUDA: {why_no_cuda()}, or set gpus: 0")
    properties = torch.cuda.get_device_properties(0)
    # Without emulation: torch also answers yes where it computes bfloat16 in float32, many times slower.
    return Gpu(properties.name, properties.total_memory, torch.cuda.is_bf16_supported(including_emulation=False))


def check_dtype(gpu: Gpu, dtype: str) -> None:
    """See that a GPU computes in ``dtype``.

    Raises:
        DeviceError: it has no bfloat16 arithmetic.
    """
    if dtype == "bfloat16" and not gpu.bf16:
        raise DeviceError(
            f"captioner.dtype is bfloat16, which {gpu.name} does not compute in; use a GPU of compute capability"
            " 8.0 or newer (A100, L4, H100...",
            "set resources.accelerator_type to get one), or captioner.dtype: float32",
        )


def why_no_cuda() -> str:
    """What torch says about it, what it was built for, which driver is there, and what to do."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install the locked environment (uv sync --frozen)"
    reason = "it sees no device"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
    return (
        f"{reason} (torch {torch.__version__} is built for CUDA {torch.version.cuda}; driver: {driver_version()});"
        f" install a driver that supports CUDA {torch.version.cuda}, check that nvidia-smi lists the GPU and that"
        " CUDA_VISIBLE_DEVICES does not hide it (in a container: --gpus all)"
    )


def driver_version(path: Path = DRIVER) -> str:
    """The version of the NVIDIA kernel driver, or ``none found``."""
    with suppress(OSError):
        words = path.read_text(encoding="utf-8").split()
        if "Module" in words[:-1]:
            rest = words[words.index("Module") + 1 :]
            return next((word for word in rest if word[0].isdigit()), "unknown")
        return "unknown"
    return "none found"


def out_of_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory, or this error followed from one that says so.

    Some of CUDA's libraries say so in words alone, and the capture of a CUDA graph that runs out of memory ends in an
    error of its own.
    """
    import torch

    said = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    followed = error.__cause__ or error.__context__
    return (
        isinstance(error, torch.OutOfMemoryError)
        or any(each in str(error) for each in said)
        or (followed is not None and out_of_memory(followed))
    )


def bisected(work: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    """What ``work`` makes of a batch, a row each; by halves where the device's memory does not hold the whole.

    Raises:
        DeviceError: it does not hold a single row.
    """
    import torch

    try:
        return work(batch)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    # Outside: the error holds on to what was computed.
    if len(batch) == 1:
        raise DeviceError("the device has too little memory for one row", "stop what else runs on it, or take another")
    log.warning("out of memory with %d rows together; going on by halves", len(batch))
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    return torch.cat([bisected(work, batch[:middle]), bisected(work, batch[middle:])])
