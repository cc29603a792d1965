"""Paid replies in files, by the content of their questions.

A reply is one file that appears whole or not at all, so a killed process loses none that it received. Processes that
share a store ask each question once: a question is claimed by a lock on a file, which the kernel releases when its
owner dies. The lock file of a sent request that never got its reply remains, marked, and shows that the request may
have been charged.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from jsfree.errors import ConfigError, StorageError
from jsfree.judge.replies import Reply
from jsfree.run.folder import Folder

POLL_SECONDS = 0.05
SENT = b"sent"


class Claim:
    """The right to ask one question.

    Attributes:
        was_sent: whether a process that was killed had sent the question without receiving a reply.
        is_in_flight: whether the question is being sent and its end is not known.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.was_sent = os.pread(descriptor, len(SENT), 0) == SENT
        self.is_in_flight = False

    def mark_sent(self) -> None:
        """Record that the question is being sent."""
        os.pwrite(self._descriptor, SENT, 0)
        self.is_in_flight = True

    def mark_ended(self) -> None:
        """Record that its reply is stored, or that it failed."""
        self.is_in_flight = False


class ReplyStore:
    """A local folder of replies.

    Raises:
        ConfigError: the path is not local.
    """

    def __init__(self, path: str) -> None:
        self.folder = Folder(os.path.expanduser(path))
        if not self.folder.is_local:
            raise ConfigError(f"{path}: the cache of replies must be a local folder", "set 'judge.cache'")

    def read(self, key: str) -> Reply | None:
        """The reply to the question with the key ``key``, or None.

        Raises:
            StorageError: the file cannot be read or does not contain a reply.
        """
        name = _name(key)
        if not Path(self.folder.path, name).is_file():
            return None
        try:
            return Reply(**self.folder.read_json(name)["reply"])
        except (TypeError, KeyError) as error:
            raise StorageError(
                f"{self.folder.uri}/{name} does not contain a judge's reply", "delete it; it will be paid again"
            ) from error

    def write(self, key: str, content: dict[str, Any], reply: Reply) -> None:
        """Store a reply with the content of its question."""
        self.folder.write_json(_name(key), {"question": content, "reply": reply.as_json()})

    @asynccontextmanager
    async def claim(self, key: str) -> AsyncIterator[Claim]:
        """Wait until no other question of this process or another one with this key is in progress, and claim it."""
        path = Path(self.folder.path, _name(key)).with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while (descriptor := _try_lock(path)) is None:
                await asyncio.sleep(POLL_SECONDS)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}", "correct 'judge.cache'") from error
        claim = Claim(descriptor)
        try:
            yield claim
        finally:
            if not claim.is_in_flight:  # else it was cancelled, and its mark remains
                with suppress(FileNotFoundError):
                    path.unlink()
            os.close(descriptor)


def _name(key: str) -> str:
    return f"{key[:2]}/{key}.json"


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock on ``path``, or None if another one holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous owner removes the file before it releases the lock: a lock on a removed file excludes nobody.
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
