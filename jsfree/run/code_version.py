"""Which code and which libraries a process has: compared between the driver of a run and its workers.

A worker of a submitted job imports the uploaded folder and takes its libraries from its node's environment;
without an upload it imports whatever its node has installed. Other code than the driver's would make other
captions, silently, or fail in the middle of a stage, so a worker compares before it works. The comparison is of
files and versions, not of paths: the same code in two places is the same code. Where driver and worker share one
folder, files are not compared: they could differ only by an edit in between, which is no wrong installation.
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

PACKAGES = ("jsfree", "ray_jobs", "serve")
LIBRARIES = ("ray", "torch", "transformers", "open_clip_torch", "deepspeed", "pyarrow")
LOCK = "uv.lock"


@dataclass(frozen=True)
class CodeVersion:
    """The packages of this project that a process imports, and the libraries beside them.

    ``files`` maps ``package/path`` to a hash; ``versions`` maps a library, ``jsfree`` or ``python`` to its version;
    ``folders`` tells the packages' folders apart from all others, on any machine, as long as it runs.
    """

    place: str
    folders: str
    files: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of all files."""
        return _hash("\n".join(f"{name} {self.files[name]}" for name in sorted(self.files)).encode())


def here() -> CodeVersion:
    """What this process imports, by its own path; imports nothing."""
    folders = {name: folder for name in PACKAGES if (folder := _folder_of(name)) is not None}
    return CodeVersion(
        place=str(Path(__file__).parents[2]),
        folders=_identity(folders.values()),
        files={name: hashed for folder in folders.values() for name, hashed in files_of(folder).items()},
        versions={"python": platform.python_version(), **{name: installed(name) for name in ("jsfree", *LIBRARIES)}},
    )


def files_of(package: Path) -> dict[str, str]:
    """Hashes of all files of a package's folder, without what Python and editors leave there."""
    return {
        f"{package.name}/{path.relative_to(package).as_posix()}": _hash(path.read_bytes())
        for path in sorted(package.rglob("*"))
        if path.is_file() and not _is_left_over(path.relative_to(package).parts)
    }


def installed(name: str) -> str:
    """Version of an installed distribution, without its build (``2.13.0+cpu`` and ``2.13.0`` have the same code)."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "none"


def differences(expected: CodeVersion, found: CodeVersion) -> list[str]:
    """What ``found`` has otherwise than ``expected``, a few words each; empty when both have the same."""
    told = [
        f"{name} {found.versions.get(name, 'none')} instead of {version}"
        for name, version in expected.versions.items()
        if found.versions.get(name, "none") != version
    ]
    shared = expected.folders != "" and expected.folders == found.folders
    changed = [] if shared else _changed(expected.files, found.files)
    if changed:
        told.append(f"{_listed(changed)}, imported from {found.place} (the driver's are in {expected.place})")
    return told


def refuse_other_code(expected: CodeVersion, node: str) -> None:
    """Compare this process with the driver.

    Raises:
        CodeError: it has other code or libraries.
    """
    told = differences(expected, here())
    if told:
        raise CodeError(f"{node} has other code than the driver: {'; '.join(told)}", f"{REMEDY}")


REMEDY = "rebuild the image or run `uv sync --frozen` on the nodes, or submit the code that they have"


def refuse_unfit_upload(folder: Path) -> None:
    """Compare what this process imports with the folder that was uploaded for it, and its lock file.

    Raises:
        CodeError: it imports other code, or has other libraries than the code was locked to.
    """
    found = here()
    told = []
    if (folder / "jsfree" / "__init__.py").exists():
        packages = [folder / name for name in PACKAGES if (folder / name / "__init__.py").exists()]
        uploaded = {name: hashed for package in packages for name, hashed in files_of(package).items()}
        if changed := _changed(uploaded, found.files):
            told.append(f"{_listed(changed)}, imported from {found.place} (the uploaded ones are in {folder})")
    if (folder / LOCK).exists():
        locked = _locked(folder / LOCK)
        told += [
            f"{name} {found.versions[name]} instead of {version} in {LOCK}"
            for name, version in locked.items()
            if found.versions[name] != version
        ]
    if told:
        raise CodeError(f"this environment does not fit the uploaded code: {'; '.join(told)}", f"{REMEDY}")


def _locked(lock: Path) -> dict[str, str]:
    """Versions of our libraries, and of jsfree, in a lock file of uv."""
    try:
        packages = tomllib.loads(lock.read_text(encoding="utf-8"))["package"]
        versions = {package["name"]: package["version"].partition("+")[0] for package in packages}
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise CodeError(f"{lock} is no lock file of uv ({error})", "make it with `uv lock`") from error
    spelled = {name: name.replace("_", "-") for name in ("jsfree", *LIBRARIES)}
    return {name: versions[locked] for name, locked in spelled.items() if locked in versions}


def _folder_of(package: str) -> Path | None:
    spec = find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _identity(folders: Iterable[Path]) -> str:
    """Names folders of this boot of this machine; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    status = [folder.stat() for folder in folders]
    return " ".join([boot, *(f"{each.st_dev}:{each.st_ino}" for each in status)])


def _is_left_over(parts: Iterable[str]) -> bool:
    return any(part == "__pycache__" or part.startswith(".") or part.endswith("~") for part in parts)


def _changed(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))


def _listed(names: list[str]) -> str:
    return f"other {names[0]}" + (f" and {len(names) - 1} more files" if len(names) > 1 else "")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
