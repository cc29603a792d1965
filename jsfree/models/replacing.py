"""Replaces a folder by another one so that an interruption leaves the old content or the new, and never neither.

The new content is first written whole: beside a local folder, as ``.<name>.<32 hex digits>``, which is then exchanged
with it in one step. An object store has no such step. There the complete copy is written into the folder, as
``.new.<32 hex digits>``, and stays until its files have been copied to their places one by one, the checksums first,
so that a mixture is recognised as one.
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
"""Of Linux's renameat2(2)."""


def replace_folder(target: Folder, local: Path) -> None:
    """Put a copy of a local folder in the place of ``target`` and all that it holds.

    Raises:
        StorageError: it cannot be written; the old content is still there, or the message says where the new one is.
    """
    if target.is_local:
        _replace_local(target, local)
    else:
        _replace_in_store(target, local)


def _replace_local(target: Folder, local: Path) -> None:
    path = os.path.realpath(target.path)  # the folder itself, not a link to it
    parent, name = os.path.split(path)
    fresh = f"{parent}/.{name}.{uuid.uuid4().hex}"
    try:
        os.makedirs(parent, exist_ok=True)
        _remove_leftovers(parent, name)
        shutil.copytree(local, fresh)
        _flush(fresh)
        if os.path.lexists(path):
            _exchange(fresh, path)
        else:
            os.rename(fresh, path)
    except OSError as error:
        remedy = "; name a folder below it" if error.errno in (errno.EBUSY, errno.EXDEV) else ""  # a mounted disk
        raise StorageError(f"{target.uri} cannot be written: {reason(error)}{remedy}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # after the exchange, the old content


def _exchange(fresh: str, path: str) -> None:
    """Swap two folders, in one step where the filesystem can."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_CWD, os.fsencode(fresh), AT_CWD, os.fsencode(path), RENAME_EXCHANGE) == 0:
        return
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    old = f"{fresh}.old"  # such as NFS
    os.rename(path, old)
    try:
        os.rename(fresh, path)
    except BaseException:
        os.rename(old, path)
        raise
    os.rename(old, fresh)


def _replace_in_store(target: Folder, local: Path) -> None:
    for leftover in filter(PARTIAL.match, target.names()):
        target.remove(leftover)
    old = set(target.sizes())
    fresh = target / f".new.{uuid.uuid4().hex}"
    fresh.upload(str(local))
    names = sorted(fresh.sizes(), key=lambda name: (name != CHECKSUMS, name))
    try:
        for name in names:
            target.copy_from(fresh, name)
        for name in old - set(names):
            target.remove(name)
    except StorageError as error:
        raise StorageError(f"{error}", f"a complete copy of the new content is in {fresh.uri}") from error
    fresh.remove()


def _flush(folder: str) -> None:
    """Have all files of a folder on the disk, for the case of a power failure after the old ones are gone."""
    for directory, _, names in os.walk(folder):
        for path in (directory, *(f"{directory}/{name}" for name in names)):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _remove_leftovers(parent: str, name: str) -> None:
    """Remove what an interrupted replacement left beside a folder whose own content is whole."""
    leftover = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{32}}(\.old)?")
    if os.path.isdir(f"{parent}/{name}"):
        for entry in filter(leftover.fullmatch, os.listdir(parent)):
            shutil.rmtree(f"{parent}/{entry}", ignore_errors=True)
