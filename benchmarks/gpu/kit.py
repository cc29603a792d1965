"""Makes missing Python packages importable from the wheels of ``make gpu-kit``. Uses the standard library only.

Compiled packages cannot be imported from a wheel, so wheels are unpacked into a temporary folder.
"""

from __future__ import annotations

import atexit
import re
import shutil
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def install(folder: Path) -> list[str]:
    """Make the wheels of a folder importable, except those that are installed in the same or a newer version.

    Returns:
        The names and versions of the packages taken from the wheels; empty if the folder does not exist.
    """
    needed = [wheel for wheel in sorted(folder.glob("*.whl")) if _is_needed(wheel)]
    if not needed:
        return []
    unpacked = tempfile.mkdtemp(prefix="gpu-kit-")
    atexit.register(shutil.rmtree, unpacked, ignore_errors=True)
    for wheel in needed:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    sys.path.insert(0, unpacked)
    return ["==".join(_identity(wheel)) for wheel in needed]


def _is_needed(wheel: Path) -> bool:
    name, offered = _identity(wheel)
    try:
        return _release(version(name)) < _release(offered)
    except PackageNotFoundError:
        return True


def _identity(wheel: Path) -> tuple[str, str]:
    """Name and version of the package in a wheel, by its file name."""
    name, number, *_ = wheel.name.split("-")
    return name, number


def _release(number: str) -> list[int]:
    """The numbers of a version, for comparison; what follows them (``rc1``, ``+cpu``) is not compared."""
    match = re.match(r"\d+(\.\d+)*", number)
    return [int(part) for part in match[0].split(".")] if match else []
