"""Which folder a path or URI leads to: a spelling with ``..``, a link or a mount is the folder that it leads to."""

from __future__ import annotations

import os
import posixpath
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from jsfree.config import RunConfig
from jsfree.errors import ConfigError, JsfreeError, RunError, StorageError
from jsfree.run.filesystems import filesystem_of
from jsfree.run.folder import Folder
from jsfree.run.record import RECORD
from jsfree.run.run import CONFIG, Run, stored_settings
from jsfree.uris import has_scheme, is_remote

OWN_SECTIONS = {"run", "captioner", "clip", "train"}
"""Keys of every run's ``config.yaml``, which tell it from the ``config.yaml`` of something else."""


def is_within(inner: Folder, outer: Folder) -> bool:
    """Whether one folder is another one, or in it; neither must exist."""
    if inner.is_local != outer.is_local:
        return False
    if not inner.is_local:
        same_store = type(inner.filesystem) is type(outer.filesystem)
        return same_store and _key(outer) in (_key(inner), *_parents(_key(inner)))
    target = os.path.realpath(outer.path)
    chain = [os.path.realpath(inner.path), *map(str, Path(os.path.realpath(inner.path)).parents)]
    return any(_is_same(each, target) for each in chain)


def is_same_location(path: str, other: str) -> bool:
    """Whether two paths or URIs, of files or folders that need not exist, lead to the same one.

    URIs of a store are the same if they are spelled alike, apart from a slash at the end.
    """
    stores = [is_remote(each) for each in (path, other)]
    if any(stores):
        return all(stores) and path.rstrip("/") == other.rstrip("/")
    return _is_same(*(os.path.realpath(filesystem_of(each)[1]) for each in (path, other)))


def enclosing_run(folder: Folder) -> Folder | None:
    """The run that a folder is, or is in; None where there is none.

    A level that this user may not read counts as no run.
    """
    if folder.is_local:
        real = os.path.realpath(folder.path)
        levels = [Folder(str(level)) for level in (real, *Path(real).parents)]
    else:
        scheme = folder.uri.partition("://")[0]
        key = _key(folder)
        levels = [Folder(f"{scheme}://{level}") for level in (key, *_parents(key)) if level.strip("/")]
    return next((level for level in levels if _is_run(level)), None)


def require_outside_runs(option: str, target: Folder) -> None:
    """Refuse a folder of a run as a place to write to.

    Args:
        option: the option that named it, for the error.

    Raises:
        ConfigError: the folder is a run, or is in one.
    """
    run = enclosing_run(target)
    if run is not None:
        raise ConfigError(f"{option} {target.uri}: that folder belongs to the run {run.uri}", "name a folder elsewhere")


def require_outside_sources(option: str, target: Folder, config: RunConfig) -> None:
    """Refuse a folder that a run reads its images, pairs or models from: what is written there would change them.

    Raises:
        ConfigError: the folder is one of them, or is in one.
    """
    sources = {"source.path": config.source.path, "evaluate.source.path": config.evaluate.source.path}
    if config.imported is not None:
        sources["imported.path"] = config.imported.path
    for key, ref in {"captioner.ref": config.captioner.ref, "clip.ref": config.clip.ref}.items():
        if has_scheme(ref) or os.path.isdir(os.path.expanduser(ref)):  # else a model of the hub, or a packaged one
            sources[key] = ref
    for key, path in sources.items():
        with suppress(StorageError):  # a filesystem that this installation does not know is not that of the target
            if path is not None and is_within(target, Folder(os.path.expanduser(path))):
                raise ConfigError(f"{option} {target.uri}: the run reads from there ({key})", "name a folder elsewhere")


def require_base_from_here(run: Run) -> None:
    """Refuse to look for a run's captioner from a working directory in which its relative path leads nowhere.

    Raises:
        RunError: ``captioner.ref`` is relative to the folder in which the run was started.
    """
    ref, folder = run.config.captioner.ref, run.folder
    if has_scheme(ref) or Path(ref).expanduser().is_absolute() or Path(ref).is_dir() or not folder.exists(RECORD):
        return
    started = folder.read_json(RECORD).get("directory")
    if started is not None and Path(started, ref).is_dir():
        raise RunError(
            f"{folder.uri}: 'captioner.ref' is {ref!r}, a path relative to the folder in which the run was started;"
            f" repeat the command there: cd {shlex.quote(started)}"
        )


def require_own_folder(file: Path, config: RunConfig) -> None:
    """Refuse the configuration of a run that was moved or copied, where it does not say which run is meant.

    Args:
        file: the configuration file that was given.
        config: what was read from it, where no option named a run.

    Raises:
        ConfigError: ``file`` is the configuration of a run in another folder than its ``run`` says.
    """
    folder = Folder(str(file.parent))
    if file.name != CONFIG or not _is_run(folder):
        return
    named = Folder(config.run)
    if not (is_within(folder, named) and is_within(named, folder)):
        raise ConfigError(
            f"{file} is the configuration of the run in {folder.uri}, but its 'run' is {config.run!r} (it was moved or"
            f" copied, or is read from another working directory)",
            f"add --run {shlex.quote(folder.uri)} to work on it",
        )


def _is_run(folder: Folder) -> bool:
    try:
        if not folder.exists(CONFIG):
            return False
        return folder.exists(RECORD) or set(stored_settings(folder)) >= OWN_SECTIONS
    except JsfreeError:  # not readable, or not YAML
        return False


def _key(folder: Folder) -> str:
    return posixpath.normpath(folder.path)


def _parents(key: str) -> Iterator[str]:
    while (parent := posixpath.dirname(key)) != key:
        yield parent
        key = parent


def _is_same(path: str, other: str) -> bool:
    """Whether two real paths are the same, or lead to the same place by a mount."""
    try:
        return path == other or os.path.samefile(path, other)
    except OSError:
        return False
