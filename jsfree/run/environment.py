"""What a run was made with: code, libraries, machine, and command line."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

import jsfree
from jsfree.gpus import nvidia_driver
from jsfree.run import code_version

LIBRARIES = ("ray", "torch", "transformers", "open_clip_torch", "deepspeed", "pyarrow", "numpy", "safetensors")
Machine = dict[str, Any]
"""A machine: ``host``, ``cpus``, ``memory_gib``, and with GPUs ``gpus`` and ``nvidia_driver``."""


def code() -> dict[str, Any]:
    """Version and file hash of jsfree; in its git checkout also the commit and whether files were ``changed``."""
    known = {"version": jsfree.__version__, "fingerprint": code_version.current_version().fingerprint}
    root = str(Path(jsfree.__file__).parents[1])
    tracked = "jsfree/__init__.py"
    if _output(["git", "-C", root, "ls-files", tracked]) != tracked:  # no git, or a checkout of another project
        return known
    changed = _output(["git", "-C", root, "status", "--porcelain", "--untracked-files=no"])
    return {**known, "commit": _output(["git", "-C", root, "rev-parse", "HEAD"]), "changed": bool(changed)}


def versions() -> dict[str, str]:
    """Versions of Python, of the libraries that results depend on, and of CUDA."""
    import torch

    cuda = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}, **cuda}


def hardware() -> str:
    """This machine in one line, such as ``8 CPU cores (x86_64), 1 x NVIDIA L4``."""
    import torch

    gpus = f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} CPU cores ({platform.machine()}){gpus}"


def machine() -> Machine:
    """Name, CPUs, memory, GPUs and GPU driver of this machine."""
    memory = psutil.virtual_memory().total
    facts: Machine = {"host": socket.gethostname(), "cpus": os.cpu_count(), "memory_gib": gibibytes(memory)}
    driver = nvidia_driver()
    if driver is not None and driver.gpus:
        facts["gpus"] = [f"{name}, {size // 2**20} MiB" for name, size in driver.gpus]
        facts["nvidia_driver"] = driver.version
    return facts


def command(argv: Sequence[str]) -> str:
    """The command line as typed in a shell."""
    program = Path(argv[0])
    return shlex.join(["jsfree" if program.stem in ("jsfree", "cli") else program.name, *argv[1:]])


def gibibytes(size: float) -> float:
    """A size in bytes as GiB, to one decimal."""
    return round(size / 2**30, 1)


def _output(arguments: Sequence[str]) -> str | None:
    """What a program prints; None if it is missing, fails or takes too long."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
