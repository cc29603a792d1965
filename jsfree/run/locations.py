"""Comparisons of folders by location, after resolving ``..``, symbolic links and mounts."""

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
"""Keys that distinguish the ``config.yaml`` of a run from that of other programs."""


def is_within(inner: Folder, outer: Folder) -> bool:
    """Whether ``inner`` is ``outer`` or a subfolder of it. The folders need not exist."""
    if inner.is_local != outer.is_local:
        return False
    if not inner.is_local:
        same_store = type(inner.filesystem) is type(outer.filesystem)
        return same_store and _key(outer) in (_key(inner), *_parents(_key(inner)))
    target = os.path.realpath(outer.path)
    chain = [os.path.realpath(inner.path), *map(str, Path(os.path.realpath(inner.path)).parents)]
    return any(_is_same(each, target) for each in chain)


def is_same_location(path: str, other: str) -> bool:
    """Whether two paths or URIs refer to the same file or folder, which need not exist.

    Remote URIs are compared as strings, without trailing slashes.
    """
    remote = [is_remote(path), is_remote(other)]
    if any(remote):
        return all(remote) and path.rstrip("/") == other.rstrip("/")
    return _is_same(*(os.path.realpath(filesystem_of(each)[1]) for each in (path, other)))


def enclosing_run(folder: Folder) -> Folder | None:
    """Return the run that contains a folder, or is the folder; None if there is none.

    Folders without read permission are not runs.
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
    """Refuse an output folder that is, or is inside, a run.

    Args:
        option: name of the option, for the error message.

    Raises:
        ConfigError: the folder is a run, or is inside one.
    """
    run = enclosing_run(target)
    if run is not None:
        raise ConfigError(
            f"{option} {target.uri}: the folder belongs to the run {run.uri}", "choose a folder elsewhere"
        )


def require_outside_sources(option: str, target: Folder, config: RunConfig) -> None:
    """Refuse an output folder inside a folder from which a run reads images, pairs or models.

    Raises:
        ConfigError: the folder is an input of the run, or is inside one.
    """
    sources = {"source.path": config.source.path, "evaluate.source.path": config.evaluate.source.path}
    if config.imported is not None:
        sources["imported.path"] = config.imported.path
    refs = {"captioner.ref": config.captioner.ref, "clip.ref": config.clip.ref}
    if config.clip.second is not None:
        refs["clip.second.ref"] = config.clip.second.ref
    for key, ref in refs.items():
        if has_scheme(ref) or os.path.isdir(os.path.expanduser(ref)):  # otherwise a hub model or a packaged one
            sources[key] = ref
    for key, path in sources.items():
        with suppress(StorageError):  # the target cannot be on an unsupported filesystem
            if path is not None and is_within(target, Folder(os.path.expanduser(path))):
                raise ConfigError(
                    f"{option} {target.uri}: the folder is an input of the run ({key})", "choose a folder elsewhere"
                )


def require_base_from_here(run: Run) -> None:
    """Check that a relative ``captioner.ref`` of a run exists in the working directory.

    Raises:
        RunError: it exists only in the working directory in which the run was started.
    """
    ref, folder = run.config.captioner.ref, run.folder
    if has_scheme(ref) or Path(ref).expanduser().is_absolute() or Path(ref).is_dir() or not folder.exists(RECORD):
        return
    started = folder.read_json(RECORD).get("directory")
    if started is not None and Path(started, ref).is_dir():
        raise RunError(
            f"{folder.uri}: 'captioner.ref' is {ref!r}, a path relative to the folder in which the run was started",
            f"repeat the command there: cd {shlex.quote(started)}",
        )


def require_own_folder(file: Path, config: RunConfig) -> None:
    """Refuse the configuration file of a run that was moved or copied, because its ``run`` is ambiguous.

    Args:
        file: the configuration file.
        config: its content.

    Raises:
        ConfigError: ``file`` is in the folder of a run, and its setting ``run`` is another folder.
    """
    folder = Folder(str(file.parent))
    if file.name != CONFIG or not _is_run(folder):
        return
    configured = Folder(config.run)
    if not (is_within(folder, configured) and is_within(configured, folder)):
        raise ConfigError(
            f"{file} is the configuration of the run in {folder.uri}, but its 'run' is {config.run!r} (it was moved or"
            " copied, or is read from another working directory)",
            f"add --run {shlex.quote(folder.uri)} to use it",
        )


def _is_run(folder: Folder) -> bool:
    try:
        if not folder.exists(CONFIG):
            return False
        return folder.exists(RECORD) or set(stored_settings(folder)) >= OWN_SECTIONS
    except JsfreeError:  # unreadable or not YAML
        return False


def _key(folder: Folder) -> str:
    return posixpath.normpath(folder.path)


def _parents(key: str) -> Iterator[str]:
    while (parent := posixpath.dirname(key)) != key:
        yield parent
        key = parent


def _is_same(path: str, other: str) -> bool:
    """Whether two real paths are equal, or refer to the same folder through a mount."""
    try:
        return path == other or os.path.samefile(path, other)
    except OSError:
        return False
