"""Exclusive access of one driver to a run: ``lease.json`` in the run's folder, renewed while its holder is alive.

A driver is refused if the existing lease was renewed in the last ``Timing.stale`` seconds. An older lease is taken over
if it is not renewed during one more renewal interval, which tolerates clock differences. The lease of a process of this
machine that has ended is taken over immediately. A holder whose lease was taken over stops. The guarantee depends on
the filesystem:

- On a local disk, or a shared one with working file locks, the lease is read and written under a lock, so exactly one
  driver acquires it.
- Object stores have no locks. A driver writes its lease, waits ``Timing.settle`` seconds and reads it again; the last
  writer holds the lease, and the others are refused. A driver that is delayed for longer between reading and writing
  can overwrite a lease. Its holder detects this at the next renewal and stops, so two drivers can run concurrently for
  ``Timing.renew`` seconds. This wastes computation but loses no rows: rows and names of shards do not depend on the
  driver, and shards are written atomically.
"""

from __future__ import annotations

import getpass
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from filelock import FileLock, Timeout

from jsfree.errors import LeaseError, StorageError
from jsfree.run.boot import boot_id
from jsfree.run.folder import Folder

log = logging.getLogger(__name__)

LEASE = "lease.json"
LOCK = ".lease.lock"
LOCK_SECONDS = 30.0
LOST = signal.SIGUSR1


@dataclass(frozen=True)
class Timing:
    """Time limits in seconds.

    Attributes:
        renew: interval of renewals.
        stale: time since the last renewal after which a lease may be taken over.
        settle: time until a write to an object store is visible to other drivers.
    """

    renew: float = 15.0
    stale: float = 90.0
    settle: float = 2.0


@dataclass(frozen=True)
class Holder:
    """Content of ``lease.json``. Times are in UTC, in ISO 8601.

    ``machine`` identifies a boot of a machine and its PID namespace; ``started`` distinguishes processes with equal
    ``pid``.
    """

    token: str
    host: str
    pid: int
    user: str
    machine: str
    started: str
    since: str
    renewed: str
    renew_every: float
    stale_after: float

    @classmethod
    def this_process(cls, timing: Timing) -> Holder:
        """Create a lease of this process."""
        now, pid = _now(), os.getpid()
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=pid,
            user=_user(),
            machine=_machine(),
            started=_started(pid) or "",
            since=now,
            renewed=now,
            renew_every=timing.renew,
            stale_after=timing.stale,
        )

    def age(self) -> float:
        """Seconds since the last renewal, according to the local clock."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.renewed)).total_seconds()

    def has_ended(self) -> bool:
        """Whether the holder was a process of this machine that has ended."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _started(self.pid) not in (None, self.started)

    def __str__(self) -> str:
        return f"{self.user} on {self.host} (process {self.pid}) since {self.since}, last renewal {self.renewed}"


class Lease:
    """Context manager that holds the lease of a run's folder.

    In the main thread, losing the lease interrupts the block. In other threads, it is reported at the end of the block.

    Raises:
        LeaseError: another driver holds the lease, or took it over during the block.
        StorageError: the folder cannot be read or written.
    """

    def __init__(self, folder: Folder, timing: Timing | None = None) -> None:
        self.folder = folder
        self.timing = timing or Timing()
        self._own = Holder.this_process(self.timing)
        self._ended = threading.Event()
        self._lost: LeaseError | None = None
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._handler: Any = None
        """The handler of ``LOST`` that ours replaced."""

    def __enter__(self) -> Lease:
        while not self._claim(self._replaceable()):
            pass  # the lease changed meanwhile
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(LOST, _interrupt)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._handler is not None:
            signal.signal(LOST, signal.SIG_IGN)  # the cleanup below must not be interrupted
        self._thread.join()
        if self._handler is not None:
            signal.signal(LOST, self._handler)
            self._handler = None
        if self._lost:
            raise self._lost from error
        with suppress(StorageError):  # it becomes stale without a release
            self._release()

    @property
    def lost(self) -> bool:
        """Whether the lease was lost."""
        return self._lost is not None

    def _replaceable(self) -> Holder | None:
        """Return the existing lease if it may be replaced, or None if there is no lease.

        Raises:
            LeaseError: its holder is alive.
        """
        held = self._read()
        if held is None or held.has_ended():
            return held
        if abs(held.age()) <= held.stale_after:
            raise self._refusal(held)
        log.warning("%s: the lease of %s is stale; waiting for one renewal interval", self.folder.uri, held)
        time.sleep(held.renew_every + self.timing.settle)
        watched = self._read()
        if watched is not None and watched != held:
            raise self._refusal(watched)
        return watched

    def _claim(self, replaced: Holder | None) -> bool:
        """Replace a lease by that of this process; return False if another lease exists by now.

        Raises:
            LeaseError: another driver wrote its lease at the same time.
        """
        with _locked(self.folder) as is_locked:
            if self._read() != replaced:
                return False
            self._write()
        if not is_locked:
            time.sleep(self.timing.settle)
            held = self._read()
            if held is None or held.token != self._own.token:
                raise self._refusal(held or self._own)
        return True

    def _keep_renewing(self) -> None:
        renewed = time.monotonic()
        while not self._ended.wait(self.timing.renew):
            try:
                with _locked(self.folder):
                    held = self._read()
                    if held is None or held.token != self._own.token:
                        event = f"taken over by {held}" if held else "removed"
                        return self._lose(f"its lease was {event}")
                    self._write()
                renewed = time.monotonic()
            except Exception as error:  # noqa: BLE001 - no exception of a filesystem may end the renewals
                log.warning("the lease was not renewed: %s", error)
                if time.monotonic() - renewed > self.timing.stale:
                    return self._lose(f"its lease could not be renewed for {self.timing.stale:g} s ({error})")
        return None

    def _lose(self, cause: str) -> None:
        self._lost = LeaseError(
            f"{self.folder.uri}: stopped, because {cause}",
            "finished shards are kept; start the run again when no other driver uses it",
        )
        if self._handler is not None:
            signal.pthread_kill(threading.main_thread().ident or 0, LOST)

    def _release(self) -> None:
        with _locked(self.folder):
            held = self._read()
            if held is not None and held.token == self._own.token:
                self.folder.remove(LEASE)

    def _read(self) -> Holder | None:
        try:
            return Holder(**self.folder.read_json(LEASE))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        except TypeError as error:
            raise StorageError(
                f"{self.folder.uri}/{LEASE} is not a lease of this version", "delete it if no driver uses the run"
            ) from error

    def _write(self) -> None:
        self._own = replace(self._own, renewed=_now())
        self.folder.write_json(LEASE, asdict(self._own))

    def _refusal(self, held: Holder) -> LeaseError:
        return LeaseError(
            f"{self.folder.uri} is in use by {held}",
            f"stop that driver, or choose another folder with --run; the lease expires {held.stale_after:g} s after its"
            " last renewal",
        )


def holder(folder: Folder) -> Holder | None:
    """The driver that works on a run; None if there is no lease, or its process has ended, or it is stale.

    Raises:
        StorageError: the folder cannot be read.
    """
    held = Lease(folder)._read()
    is_alive = held is not None and not held.has_ended() and abs(held.age()) <= held.stale_after
    return held if is_alive else None


def _interrupt(*_: int | FrameType | None) -> None:
    # Ray's blocking calls propagate only KeyboardInterrupt and SystemExit.
    raise KeyboardInterrupt


@contextmanager
def _locked(folder: Folder) -> Iterator[bool]:
    """Lock the lease; yields False if the filesystem has no locks."""
    lock = None
    if folder.is_local:
        try:
            os.makedirs(folder.path, exist_ok=True)
            lock = FileLock(f"{folder.path}/{LOCK}", timeout=LOCK_SECONDS)
            lock.acquire()
        except NotImplementedError:  # a network disk without locks is treated like an object store
            lock = None
        except (Timeout, OSError) as error:
            raise StorageError(f"{folder.uri}/{LOCK} cannot be locked: {error}") from error
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return str(os.getuid())


def _machine() -> str:
    """Identify this boot of this machine and the PID namespace; empty if unknown."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    boot = boot_id()
    return f"{boot} {namespace}" if boot else ""


def _started(pid: int) -> str | None:
    """Start time of a process in clock ticks; empty for a zombie, None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]
