"""Checks of the installed libraries, drivers and compilers."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement

from jsfree.checks.findings import Finding, fails, note, ok
from jsfree.config import RunConfig

AREA = "libraries"
MIN_DRIVER = {"12": 525, "13": 580}
"""The oldest driver for each major version of CUDA, by NVIDIA's release notes."""
COMPILERS = ("c++", "g++", "clang++")
SHOWN = ("torch", "transformers", "ray", "deepspeed", "open_clip_torch")


def check_libraries(config: RunConfig) -> Iterator[Finding]:
    """Check the versions of libraries, and that there is a C++ compiler if one is needed."""
    yield from _versions()
    if config.generate.compile == "inductor" and not any(map(shutil.which, COMPILERS)) and "CXX" not in os.environ:
        yield (note if config.ray.cluster_address else fails)(
            AREA,
            "compiler",
            "generate.compile is inductor, but there is no C++ compiler here",
            "install one on every node (Debian: g++), or set generate.compile: none",
        )


def _versions() -> Iterator[Finding]:
    try:
        requirements = [Requirement(line) for line in metadata.requires("jsfree") or ()]
    except metadata.PackageNotFoundError:
        yield note(AREA, "versions", "jsfree runs from a folder and is not installed: versions are not compared")
        return
    required = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    mismatches = list(_mismatches(required))
    yield from mismatches
    if not mismatches:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN)
        yield ok(AREA, "versions", f"Python {platform.python_version()}, {versions}")


def _mismatches(requirements: list[Requirement]) -> Iterator[Finding]:
    """A failure for each requirement that is missing or installed in another version."""
    remedy = "install the locked environment (uv sync --frozen)"
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield fails(AREA, requirement.name, "is not installed", remedy)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield fails(AREA, requirement.name, f"{version} is installed, {requirement.specifier} is needed", remedy)


def check_drivers(nodes: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Check that the drivers of nodes, given as (host, version), support the CUDA that torch is built for."""
    import torch

    cuda = torch.version.cuda
    minimum = MIN_DRIVER.get((cuda or "").partition(".")[0])
    if not nodes or cuda is None or minimum is None:
        return
    old = [f"{host}: {driver}" for host, driver in nodes if int(driver.partition(".")[0]) < minimum]
    if old:
        yield note(
            AREA,
            "drivers",
            f"torch is built for CUDA {cuda}, which needs driver {minimum} or newer; {', '.join(old)}",
            "install a newer NVIDIA driver there, or CUDA's forward compatibility package",
        )
    else:
        yield ok(AREA, "drivers", f"{', '.join(sorted({driver for _, driver in nodes}))}, for CUDA {cuda}")
