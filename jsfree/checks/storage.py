"""Checks of a run's folder: whether it can be written, whether it fits an existing run, and its disk space."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from jsfree import config as configuration
from jsfree.checks.findings import Finding, fails, from_error, note, ok
from jsfree.config import RunConfig
from jsfree.errors import JsfreeError, StorageError
from jsfree.run.folder import Folder
from jsfree.run.run import stored_config
from jsfree.sizing.disks import Disk, DiskRequirement, by_disk

AREA = "storage"
GB = 1e9
REMEDY = "give a folder or URI that you may write to with --run"


def check_folder(config: RunConfig) -> Iterator[Finding]:
    """Write, read and remove a file in the run's folder, and compare the settings of an existing run.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder = Folder(config.run)
    created = _first_missing(Path(folder.path)) if folder.is_local else None
    name, content = f".probe-{uuid.uuid4().hex}", b"jsfree preflight\n"
    try:
        folder.write(name, content)
        same = folder.read(name) == content
        folder.remove(name)
    finally:
        _remove_empty(created, Path(folder.path))
    if not same:
        yield fails(AREA, "run folder", f"{folder.uri} returns other bytes than were written", "use another --run")
        return
    yield ok(AREA, "run folder", f"{folder.uri} can be written and read")
    if folder.exists("config.yaml"):
        yield _existing_run(config, folder)


def _existing_run(config: RunConfig, folder: Folder) -> Finding:
    name = "existing run"
    try:
        changed = configuration.differences(stored_config(folder), config)
    except JsfreeError as error:
        return from_error(AREA, name, error, "give another folder with --run")
    if not changed:
        return ok(AREA, name, "same settings: the run continues where it stopped")
    settings = "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "")
    return note(
        AREA,
        name,
        f"the run was made with other settings ({settings})",
        "finished stages that these settings affect cannot be continued: redo them with --restart STAGE, or name"
        " another folder with --run",
    )


def check_disk_space(config: RunConfig, required: Mapping[str, int], temporary: int) -> Iterator[Finding]:
    """Compare the disk space of a run with what is free; object stores are assumed to have enough.

    Args:
        required: bytes in the run's folder, by kind.
        temporary: bytes in TMPDIR, of the machine that trains, which may not be this one.

    Raises:
        StorageError: there is no temporary folder.
    """
    folder = Folder(config.run)
    on_cluster = config.ray.cluster_address is not None
    total = sum(required.values())
    kinds = "in GB: " + ", ".join(f"{kind} {size / GB:.1f}" for kind, size in required.items() if size)
    tmp = DiskRequirement(str(_temporary_folder()), temporary, f"TMPDIR {temporary / GB:.1f}")
    if not folder.is_local:
        yield ok(AREA, "disk space", f"the run takes up to {total / GB:.1f} GB ({kinds}) of {folder.uri}")
        disks = by_disk([tmp])
    else:
        run = DiskRequirement(folder.path, max(0, total - sum(folder.sizes().values())), kinds)
        disks = [*by_disk([run]), *by_disk([tmp])] if on_cluster else by_disk([run, tmp])
    for disk in disks:
        yield _space(disk, of_run=disk.requirements[0] is not tmp, on_cluster=on_cluster)


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise StorageError(
            f"no temporary folder can be written ({error})", "set TMPDIR to a writable folder"
        ) from error


def _space(disk: Disk, *, of_run: bool, on_cluster: bool) -> Finding:
    name = "disk space" if of_run else "TMPDIR"
    purposes = ", ".join(requirement.purpose for requirement in disk.requirements)
    found = (
        f"the run takes up to {disk.required / GB:.1f} GB more ({purposes});"
        f" the disk of {disk.requirements[0].path} has {disk.free / GB:.1f} GB free"
    )
    if disk.is_sufficient:
        return ok(AREA, name, found)
    place = "put --run on a larger disk, lower train.keep" if of_run else "put TMPDIR on a larger disk"
    remedy = f"free some, {place}, or raise train.checkpoint_every"
    if on_cluster and not of_run:
        return note(AREA, name, f"on this machine, which may not be one that trains: {found}", remedy)
    return fails(AREA, name, found, remedy)


def _first_missing(path: Path) -> Path | None:
    """The topmost ancestor of a path that does not exist; None if the path exists."""
    missing = None
    while not os.path.exists(path):
        missing, path = path, path.parent
    return missing


def _remove_empty(created: Path | None, path: Path) -> None:
    """Remove the empty folders from ``path`` up to ``created``."""
    while created is not None and path.is_dir() and path.is_relative_to(created) and not any(path.iterdir()):
        path.rmdir()
        path = path.parent
