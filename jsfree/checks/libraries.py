"""Whether the installed libraries are those that jsfree asks for, and whether torch can use this machine's GPU."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement

from jsfree.checks.findings import Finding, fails, note, ok
from jsfree.config import RunConfig
from jsfree.sizing.rates import Gpu

AREA = "libraries"
LEAST_DRIVER = {"12": 525, "13": 580}
"""The oldest driver for each major version of CUDA, by NVIDIA's release notes."""
COMPILERS = ("c++", "g++", "clang++")
SHOWN = ("torch", "transformers", "ray", "deepspeed", "open_clip_torch")


def check_libraries(config: RunConfig) -> Iterator[Finding]:
    """Versions, and a compiler where one is needed."""
    yield from _versions()
    if config.generate.compile == "inductor" and not any(map(shutil.which, COMPILERS)) and "CXX" not in os.environ:
        elsewhere = config.ray.address or os.environ.get("RAY_ADDRESS")
        yield (note if elsewhere else fails)(
            AREA,
            "compiler",
            "generate.compile is inductor, and there is no C++ compiler here",
            "install one on every node (Debian: g++), or set generate.compile: none",
        )


def _versions() -> Iterator[Finding]:
    try:
        asked = [Requirement(line) for line in metadata.requires("jsfree") or ()]
    except metadata.PackageNotFoundError:
        yield note(AREA, "versions", "jsfree runs from a folder and is not installed: versions are not compared")
        return
    wrong = list(_unfit([each for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})]))
    yield from wrong
    if not wrong:
        told = ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN)
        yield ok(AREA, "versions", f"Python {platform.python_version()}, {told}")


def _unfit(requirements: list[Requirement]) -> Iterator[Finding]:
    remedy = "install the locked environment (uv sync --frozen)"
    for requirement in requirements:
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield fails(AREA, requirement.name, "is not installed", remedy)
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield fails(AREA, requirement.name, f"{found} is installed, {requirement.specifier} is needed", remedy)


def check_drivers(nodes: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Whether the NVIDIA drivers of nodes, by host, serve the CUDA that the installed torch is built for."""
    import torch

    built = torch.version.cuda
    least = LEAST_DRIVER.get((built or "").partition(".")[0])
    if not nodes or built is None or least is None:
        return
    old = [f"{host}: {driver}" for host, driver in nodes if int(driver.partition(".")[0]) < least]
    if old:
        yield note(
            AREA,
            "drivers",
            f"torch is built for CUDA {built}, which needs a driver of {least} or newer; {', '.join(old)}",
            "install a newer NVIDIA driver there, unless CUDA's forward compatibility package is",
        )
    else:
        yield ok(AREA, "drivers", f"{', '.join(sorted({driver for _, driver in nodes}))}, for CUDA {built}")


def check_arithmetic(config: RunConfig, name: str, gpu: Gpu) -> Iterator[Finding]:
    """Whether a kind of GPU computes in the captioner's dtype."""
    if config.captioner.dtype == "bfloat16" and not gpu.bf16:
        yield fails(
            "cluster",
            "GPU",
            f"captioner.dtype is bfloat16, which {name} does not compute in",
            "set resources.accelerator_type to a newer one (A100, L4, H100...), or captioner.dtype: float32",
        )
