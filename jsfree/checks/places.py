"""Whether a run's folder can be written and has room for what a run leaves there."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from jsfree import config as configuration
from jsfree.checks.findings import Finding, fails, note, ok
from jsfree.config import RunConfig
from jsfree.errors import JsfreeError, StorageError
from jsfree.run.filesystems import nearest_existing
from jsfree.run.folder import Folder
from jsfree.run.run import stored_config

AREA = "storage"
GB = 1e9
REMEDY = "give a folder or URI that you may write to with --run"


def check_folder(config: RunConfig) -> Iterator[Finding]:
    """Write a file into the run's folder, read it, remove it; and look at a run that is there.

    Raises:
        StorageError: it cannot be written.
    """
    folder = Folder(config.run)
    made = _first_missing(Path(folder.path)) if folder.is_local else None
    name, content = f".probe-{uuid.uuid4().hex}", b"jsfree preflight\n"
    try:
        folder.write(name, content)
        same = folder.read(name) == content
        folder.remove(name)
    finally:
        _remove_empty(made, Path(folder.path))
    if not same:
        yield fails(AREA, "run folder", f"{folder.uri} gives back other bytes than were written", "use another --run")
        return
    yield ok(AREA, "run folder", f"{folder.uri} can be written and read")
    yield from _run_that_is_there(config, folder)


def _run_that_is_there(config: RunConfig, folder: Folder) -> Iterator[Finding]:
    if not folder.exists("config.yaml"):
        return
    try:
        changed = configuration.differences(stored_config(folder), config)
    except JsfreeError as error:
        yield fails(AREA, "run that is there", str(error), "give another folder with --run")
        return
    if changed:
        told = "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "")
        yield note(
            AREA,
            "run that is there",
            f"it was made with other settings ({told})",
            "stages that they touch are refused: --restart STAGE redoes them, --run names another folder",
        )
    else:
        yield ok(AREA, "run that is there", "same settings: the run goes on where it stopped")


def check_disk(config: RunConfig, needed: Mapping[str, int], passing: int) -> Iterator[Finding]:
    """Compare what a run will leave in its folder with what is free; stores are taken to have room.

    Args:
        needed: bytes in the run's folder, by what they are.
        passing: bytes in TMPDIR, on their way there; of this machine, which training may not be on.

    Raises:
        StorageError: there is no temporary folder.
    """
    folder, temporary = Folder(config.run), _temporary_folder()
    elsewhere = bool(config.ray.address or os.environ.get("RAY_ADDRESS"))
    total = sum(needed.values())
    told = ", ".join(f"{name} {size / GB:.1f}" for name, size in needed.items() if size)
    if not folder.is_local:
        yield ok(AREA, "room", f"the run takes up to {total / GB:.1f} GB (in GB: {told}) of {folder.uri}")
        yield from _room("TMPDIR", temporary, passing, "a checkpoint or model on its way", elsewhere=elsewhere)
        return
    path = nearest_existing(folder.path)
    there = sum(folder.sizes().values())
    left = max(0, total - there)
    if path.stat().st_dev == temporary.stat().st_dev and not elsewhere:
        yield from _room("room", path, left + passing, f"in GB: {told}, TMPDIR on the same disk {passing / GB:.1f}")
        return
    yield from _room("room", path, left, f"in GB: {told}")
    yield from _room("TMPDIR", temporary, passing, "a checkpoint or model on its way", elsewhere=elsewhere)


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise StorageError(f"no temporary folder can be written ({error})", "set TMPDIR to one that can be") from error


def _room(check: str, path: Path, needed: int, what: str, *, elsewhere: bool = False) -> Iterator[Finding]:
    free = shutil.disk_usage(path).free
    told = f"the run takes up to {needed / GB:.1f} GB more ({what}), {path} has {free / GB:.1f} GB free"
    if needed <= free:
        yield ok(AREA, check, told)
        return
    place = "put TMPDIR on a larger disk" if check == "TMPDIR" else "put --run on a larger disk, lower train.keep"
    remedy = f"free some, {place}, or raise train.checkpoint_every"
    if check == "TMPDIR" and elsewhere:
        yield note(AREA, check, f"on this machine, which may not be one that trains: {told}", remedy)
    else:
        yield fails(AREA, check, told, remedy)


def _first_missing(path: Path) -> Path | None:
    """The highest folder on the way to a path that is not there yet."""
    missing = None
    while not os.path.exists(path):
        missing, path = path, path.parent
    return missing


def _remove_empty(made: Path | None, path: Path) -> None:
    """Remove the folders that the probe made, if nobody else has put something there."""
    while made is not None and path.is_dir() and path.is_relative_to(made) and not any(path.iterdir()):
        path.rmdir()
        path = path.parent
