"""GPUs and their driver: what torch can use, clear errors where it cannot, and recovery from a full memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jsfree.errors import DeviceError

if TYPE_CHECKING:
    import torch  # imported inside functions, because a process without a GPU may need no torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, its memory in bytes, and whether it has bfloat16 arithmetic."""

    name: str
    memory: int
    bf16: bool


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver of this machine, and the (name, bytes of memory) of every GPU that it lists."""

    version: str
    gpus: list[tuple[str, int]]


def device_of(gpus: float) -> str:
    """The torch device of a process that reserved ``gpus`` GPUs: ``cpu`` or ``cuda``.

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
        error = cuda_error()
        raise DeviceError(f"{gpus:g} GPU reserved, but {error.problem}", f"{error.remedy}, or set gpus: 0")
    properties = torch.cuda.get_device_properties(0)
    # Without emulation: torch also accepts GPUs that compute bfloat16 in float32, many times slower.
    return Gpu(properties.name, properties.total_memory, torch.cuda.is_bf16_supported(including_emulation=False))


def check_dtype(gpu: Gpu, dtype: str) -> None:
    """Check that a GPU computes in ``dtype``.

    Raises:
        DeviceError: it has no bfloat16 arithmetic.
    """
    if dtype == "bfloat16" and not gpu.bf16:
        raise DeviceError(
            f"captioner.dtype is bfloat16, but {gpu.name} has no bfloat16 arithmetic",
            "use a GPU of compute capability 8.0 or newer (A100, L4, H100..., see resources.accelerator_type), or"
            " captioner.dtype: float32",
        )


def cuda_error() -> DeviceError:
    """The reason why torch cannot use CUDA, with the versions of CUDA and driver, and the remedy."""
    import torch

    problem = "torch cannot use CUDA"
    if torch.version.cuda is None:
        built = f"torch {torch.__version__} is built without CUDA"
        return DeviceError(f"{problem}: {built}", "install the locked environment (uv sync --frozen)")
    reason = "it sees no device"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
    return DeviceError(
        f"{problem}: {reason} (torch {torch.__version__} is built for CUDA {torch.version.cuda};"
        f" driver: {driver_version()})",
        f"install a driver that supports CUDA {torch.version.cuda}, check that nvidia-smi lists the GPU and that"
        " CUDA_VISIBLE_DEVICES does not hide it (in a container: --gpus all)",
    )


def nvidia_driver() -> Driver | None:
    """Ask NVML for the driver and its GPUs, without initialising CUDA; None if there is no working driver."""
    try:
        import pynvml
    except ImportError:  # a GPU machine may have torch and transformers alone (docs/first-run.md)
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        gpus = [(pynvml.nvmlDeviceGetName(gpu), int(pynvml.nvmlDeviceGetMemoryInfo(gpu).total)) for gpu in handles]
        return Driver(pynvml.nvmlSystemGetDriverVersion(), gpus)
    except pynvml.NVMLError:
        return None
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def driver_version() -> str:
    """The version of the NVIDIA driver, or ``none found``."""
    driver = nvidia_driver()
    return "none found" if driver is None else driver.version


def out_of_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory, or the error follows from one that did.

    Some CUDA libraries only mention it in their message, and capturing a CUDA graph that runs out of memory ends in
    an error of its own.
    """
    import torch

    messages = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    cause = error.__cause__ or error.__context__
    return (
        isinstance(error, torch.OutOfMemoryError)
        or any(message in str(error) for message in messages)
        or (cause is not None and out_of_memory(cause))
    )


def apply_in_halves(function: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    """Apply a row-wise function to a batch, halving the batch as often as the device's memory requires.

    Raises:
        DeviceError: a single row does not fit.
    """
    import torch

    try:
        return function(batch)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    # Outside of the except clause, because the error holds references to intermediate results.
    if len(batch) == 1:
        raise DeviceError("the device has too little memory for one row", "stop other programs on it, or use another")
    log.warning("out of memory with a batch of %d rows; continuing with halves", len(batch))
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    return torch.cat([apply_in_halves(function, batch[:middle]), apply_in_halves(function, batch[middle:])])
