"""GPUs: what a person is told when there is none, or one that cannot do what is asked."""

import pytest
import torch

from jsfree.errors import DeviceError
from jsfree.gpus import Gpu, bisected, check_dtype, device_of, driver_version, out_of_memory, visible_gpu, why_no_cuda
from jsfree.models.loading import load_captioner

V100, A100 = Gpu("Tesla V100-SXM2-32GB", 32 * 2**30, bf16=False), Gpu("NVIDIA A100-SXM4-80GB", 80 * 2**30, bf16=True)
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without CUDA")


def test_bfloat16_needs_a_gpu_that_computes_in_it():
    check_dtype(A100, "bfloat16")
    check_dtype(V100, "float32")
    with pytest.raises(DeviceError, match=r"bfloat16, which Tesla V100-SXM2-32GB does not .*captioner\.dtype: float32"):
        check_dtype(V100, "bfloat16")


@without_cuda
@pytest.mark.parametrize("ask", [visible_gpu, device_of])
def test_no_gpu_is_explained_in_one_line(ask):
    with pytest.raises(DeviceError) as error:
        ask(1)
    assert str(error.value).startswith("1 GPU reserved, but torch cannot use CUDA: ")
    assert f"torch {torch.__version__}" in str(error.value)
    assert "\n" not in str(error.value)


@without_cuda
def test_no_model_is_loaded_onto_a_gpu_that_is_not_there():
    with pytest.raises(DeviceError, match="cannot use CUDA"):
        load_captioner("miniworld:captioner", "cuda", "bfloat16")


@without_cuda
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a build of torch for CUDA")
def test_the_driver_and_what_torch_was_built_for_are_named():
    assert f"built for CUDA {torch.version.cuda}; driver: {driver_version()}" in why_no_cuda()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
        ("something else", "unknown"),
        (None, "none found"),
    ],
)
def test_the_kernels_driver_version_is_read(tmp_path, text, found):
    if text is not None:
        (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path / "version") == found


def test_a_batch_too_large_for_memory_goes_by_halves():
    largest = []

    def work(rows: torch.Tensor) -> torch.Tensor:
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        largest.append(len(rows))
        return rows * 2

    assert torch.equal(bisected(work, torch.arange(10)), torch.arange(10) * 2)
    assert max(largest) == 3

    def never(rows: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match="too little memory for one row"):
        bisected(never, torch.arange(4))


def test_an_error_that_follows_from_a_lack_of_memory_is_one():
    """As the capture of a CUDA graph ends in an error of its own."""

    def capture() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError) as raised:
        capture()
    assert out_of_memory(raised.value)
    assert not out_of_memory(RuntimeError("CUDA error: operation failed due to a previous error during capture"))
