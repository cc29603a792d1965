"""GPUs: errors without one or with an unsuitable one, the driver, and batches that do not fit."""

import sys
from types import SimpleNamespace

import pytest
import torch

from jsfree.errors import DeviceError
from jsfree.gpus import (
    Driver,
    Gpu,
    apply_in_halves,
    check_dtype,
    cuda_error,
    device_of,
    driver_version,
    nvidia_driver,
    out_of_memory,
    visible_gpu,
)
from jsfree.models.loading import load_captioner

V100, A100 = Gpu("Tesla V100-SXM2-32GB", 32 * 2**30, bf16=False), Gpu("NVIDIA A100-SXM4-80GB", 80 * 2**30, bf16=True)
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")


def test_bfloat16_needs_a_gpu_that_supports_it():
    check_dtype(A100, "bfloat16")
    check_dtype(V100, "float32")
    with pytest.raises(DeviceError, match=r"Tesla V100-SXM2-32GB has no bfloat16 .*captioner\.dtype: float32"):
        check_dtype(V100, "bfloat16")


@without_cuda
@pytest.mark.parametrize("ask", [visible_gpu, device_of])
def test_a_missing_gpu_is_explained_in_one_line(ask):
    with pytest.raises(DeviceError) as error:
        ask(1)
    assert str(error.value).startswith("1 GPU reserved, but torch cannot use CUDA: ")
    assert f"torch {torch.__version__}" in str(error.value)
    assert "\n" not in str(error.value)


@without_cuda
def test_loading_a_model_onto_a_missing_gpu_fails():
    with pytest.raises(DeviceError, match="cannot use CUDA"):
        load_captioner("miniworld:captioner", "cuda", "bfloat16")


@without_cuda
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a build of torch for CUDA")
def test_the_error_names_the_driver_and_the_cuda_of_torch():
    assert f"built for CUDA {torch.version.cuda}; driver: {driver_version()}" in cuda_error().problem


class Nvml:
    """NVML of a machine with two GPUs, as the driver's library answers."""

    NVMLError = RuntimeError
    nvmlInit = nvmlShutdown = staticmethod(lambda: None)
    nvmlDeviceGetCount = staticmethod(lambda: 2)
    nvmlDeviceGetHandleByIndex = staticmethod(lambda index: index)
    nvmlDeviceGetName = staticmethod(lambda gpu: "NVIDIA A100-SXM4-80GB")
    nvmlDeviceGetMemoryInfo = staticmethod(lambda gpu: SimpleNamespace(total=81920 * 2**20))
    nvmlSystemGetDriverVersion = staticmethod(lambda: "580.65.06")


def test_driver_and_gpus_are_listed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml)
    assert nvidia_driver() == Driver("580.65.06", [("NVIDIA A100-SXM4-80GB", 81920 * 2**20)] * 2)
    assert driver_version() == "580.65.06"


def test_a_failing_driver_is_treated_as_absent(monkeypatch):
    def lost(gpu: int) -> str:
        raise Nvml.NVMLError("GPU is lost")

    monkeypatch.setitem(sys.modules, "pynvml", Nvml)
    monkeypatch.setattr(Nvml, "nvmlDeviceGetName", staticmethod(lost))
    assert nvidia_driver() is None


@without_cuda
def test_no_gpu_is_found_without_a_driver():
    assert nvidia_driver() is None
    assert driver_version() == "none found"


def test_a_batch_too_large_for_memory_is_halved():
    largest = []

    def function(rows: torch.Tensor) -> torch.Tensor:
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        largest.append(len(rows))
        return rows * 2

    assert torch.equal(apply_in_halves(function, torch.arange(10)), torch.arange(10) * 2)
    assert max(largest) == 3

    def never(rows: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match="too little memory for one row"):
        apply_in_halves(never, torch.arange(4))


def test_out_of_memory_is_recognised_as_the_cause_of_another_error():
    """A failed CUDA graph capture raises an error of its own, with the out-of-memory error as its cause."""

    def capture() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError) as raised:
        capture()
    assert out_of_memory(raised.value)
    assert not out_of_memory(RuntimeError("CUDA error: operation failed due to a previous error during capture"))
