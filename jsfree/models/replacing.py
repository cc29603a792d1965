"""Replaces the content of a folder such that an interruption leaves a complete copy of the old or the new content.

For a local folder, the new content is written to a sibling folder ``.<name>.<32 hex digits>``, and the two folders are
exchanged atomically. Object stores have no such operation: the new content is written to the subfolder
``.new.<32 hex digits>``, which is removed after its files have been copied to their final names one by one. Checksums
are copied first, so that a mixture of old and new files is detected.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import uuid
from pathlib import Path

from jsfree.errors import StorageError
from jsfree.models.contents import CHECKSUMS
from jsfree.run.filesystems import reason
from jsfree.run.folder import PARTIAL, Folder

AT_CWD, RENAME_EXCHANGE = -100, 2
"""Constants of renameat2(2) on Linux."""


def replace_folder(target: Folder, local: Path) -> None:
    """Replace the content of ``target`` by a copy of a local folder.

    Raises:
        StorageError: ``target`` cannot be written. It has its old content, or the message names the folder with the new
            content.
    """
    if target.is_local:
        _replace_local(target, local)
    else:
        _replace_in_store(target, local)


def _replace_local(target: Folder, local: Path) -> None:
    path = os.path.realpath(target.path)  # the folder itself, not a link to it
    parent, name = os.path.split(path)
    new = f"{parent}/.{name}.{uuid.uuid4().hex}"
    try:
        os.makedirs(parent, exist_ok=True)
        _remove_leftovers(parent, name)
        shutil.copytree(local, new)
        _fsync_tree(new)
        if os.path.lexists(path):
            _exchange(new, path)
        else:
            os.rename(new, path)
    except OSError as error:
        is_mount = error.errno in (errno.EBUSY, errno.EXDEV)
        remedy = "use a folder below it" if is_mount else ""
        raise StorageError(f"{target.uri} cannot be written: {reason(error)}", remedy) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)  # the old content, after the exchange


def _exchange(new: str, path: str) -> None:
    """Exchange two folders, atomically if the filesystem supports it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_CWD, os.fsencode(new), AT_CWD, os.fsencode(path), RENAME_EXCHANGE) == 0:
        return
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    old = f"{new}.old"  # not supported, for example on NFS
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    os.rename(old, new)


def _replace_in_store(target: Folder, local: Path) -> None:
    for leftover in filter(PARTIAL.match, target.names()):
        target.remove(leftover)
    old = set(target.sizes())
    new = target / f".new.{uuid.uuid4().hex}"
    new.upload(str(local))
    names = sorted(new.sizes(), key=lambda name: (name != CHECKSUMS, name))
    try:
        for name in names:
            target.copy_from(new, name)
        for name in old - set(names):
            target.remove(name)
    except StorageError as error:
        raise StorageError(f"{error}", f"a complete copy of the new content is in {new.uri}") from error
    new.remove()


def _fsync_tree(folder: str) -> None:
    """Flush all files of a folder to the disk, so that a power failure after the exchange loses nothing."""
    for directory, _, names in os.walk(folder):
        for path in (directory, *(f"{directory}/{name}" for name in names)):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _remove_leftovers(parent: str, name: str) -> None:
    """Remove the temporary folders of interrupted replacements, if the folder itself exists."""
    leftover = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{32}}(\.old)?")
    if os.path.isdir(f"{parent}/{name}"):
        for entry in filter(leftover.fullmatch, os.listdir(parent)):
            shutil.rmtree(f"{parent}/{entry}", ignore_errors=True)
