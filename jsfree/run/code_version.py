"""Compares the code and libraries of the driver of a run with those of its workers.

Workers of a submitted job import the uploaded folder, and libraries from the environment of their node; without an
upload, they import the installed version. With other code than the driver's, they could silently produce other captions
or fail during a stage, so each worker compares versions first. Files are compared by content, not by path. If driver
and worker import the same folder, files are not compared, because they could differ only by an edit in the meantime.
"""

from __future__ import annotations

import hashlib
import platform
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from jsfree.errors import CodeError
from jsfree.run.boot import boot_id

PACKAGES = ("jsfree", "ray_jobs", "serve")
LIBRARIES = ("ray", "torch", "transformers", "open_clip_torch", "deepspeed", "pyarrow")
LOCK = "uv.lock"


@dataclass(frozen=True)
class CodeVersion:
    """Code and libraries of a process.

    Attributes:
        location: folder that contains the packages of this project.
        folders: identifies the folders of the packages, on this boot of this machine.
        files: hashes of source files by ``package/path``.
        versions: versions of libraries, ``jsfree`` and ``python``.
    """

    location: str
    folders: str
    files: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of all source files."""
        return _hash("\n".join(f"{name} {self.files[name]}" for name in sorted(self.files)).encode())


def current_version() -> CodeVersion:
    """Determine the version of this process, without importing the packages."""
    folders = {name: folder for name in PACKAGES if (folder := _folder_of(name)) is not None}
    return CodeVersion(
        location=str(Path(__file__).parents[2]),
        folders=_identity(folders.values()),
        files={name: hashed for folder in folders.values() for name, hashed in files_of(folder).items()},
        versions={"python": platform.python_version(), **{name: installed(name) for name in ("jsfree", *LIBRARIES)}},
    )


def files_of(package: Path) -> dict[str, str]:
    """Hash the files of a package, without caches and backup files."""
    return {
        f"{package.name}/{path.relative_to(package).as_posix()}": _hash(path.read_bytes())
        for path in sorted(package.rglob("*"))
        if path.is_file() and not _is_temporary(path.relative_to(package).parts)
    }


def installed(name: str) -> str:
    """Version of an installed distribution without its build suffix (``2.13.0`` for ``2.13.0+cpu``)."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "none"


def differences(expected: CodeVersion, found: CodeVersion) -> list[str]:
    """Describe how ``found`` differs from ``expected``; empty if they are equal."""
    result = [
        f"{name} {found.versions.get(name, 'none')} instead of {version}"
        for name, version in expected.versions.items()
        if found.versions.get(name, "none") != version
    ]
    shared = expected.folders != "" and expected.folders == found.folders
    changed = [] if shared else _changed(expected.files, found.files)
    if changed:
        result.append(
            f"{_list_files(changed)}, imported from {found.location} (the driver's are in {expected.location})"
        )
    return result


def require_same_code(expected: CodeVersion, node: str) -> None:
    """Compare this process with the driver.

    Raises:
        CodeError: the code or libraries differ.
    """
    different = differences(expected, current_version())
    if different:
        raise CodeError(f"{node} has other code than the driver: {'; '.join(different)}", REMEDY)


REMEDY = "rebuild the image or run `uv sync --frozen` on the nodes, or submit the code that is installed there"


def require_uploaded_code(folder: Path) -> None:
    """Compare this process with the folder that was uploaded for it, and with its lock file.

    Raises:
        CodeError: the code differs from the folder, or the libraries differ from the lock file.
    """
    found = current_version()
    different = []
    if (folder / "jsfree" / "__init__.py").exists():
        packages = [folder / name for name in PACKAGES if (folder / name / "__init__.py").exists()]
        uploaded = {name: hashed for package in packages for name, hashed in files_of(package).items()}
        if changed := _changed(uploaded, found.files):
            different.append(f"{_list_files(changed)}, imported from {found.location} (the upload is in {folder})")
    if (folder / LOCK).exists():
        locked = _locked(folder / LOCK)
        different += [
            f"{name} {found.versions[name]} instead of {version} in {LOCK}"
            for name, version in locked.items()
            if found.versions[name] != version
        ]
    if different:
        raise CodeError(f"this environment does not match the uploaded code: {'; '.join(different)}", REMEDY)


def _locked(lock: Path) -> dict[str, str]:
    """Read the versions of ``LIBRARIES`` and jsfree from a lock file of uv."""
    try:
        packages = tomllib.loads(lock.read_text(encoding="utf-8"))["package"]
        versions = {package["name"]: package["version"].partition("+")[0] for package in packages}
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise CodeError(f"{lock} is not a lock file of uv ({error})", "create it with `uv lock`") from error
    normalized = {name: name.replace("_", "-") for name in ("jsfree", *LIBRARIES)}
    return {name: versions[locked] for name, locked in normalized.items() if locked in versions}


def _folder_of(package: str) -> Path | None:
    spec = find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _identity(folders: Iterable[Path]) -> str:
    """Identify folders on this boot of this machine; empty if unknown."""
    if not (boot := boot_id()):
        return ""
    status = [folder.stat() for folder in folders]
    return " ".join([boot, *(f"{stat.st_dev}:{stat.st_ino}" for stat in status)])


def _is_temporary(parts: Iterable[str]) -> bool:
    return any(part == "__pycache__" or part.startswith(".") or part.endswith("~") for part in parts)


def _changed(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))


def _list_files(names: list[str]) -> str:
    return f"other {names[0]}" + (f" and {len(names) - 1} more files" if len(names) > 1 else "")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
