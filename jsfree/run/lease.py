"""One driver at a time on a run: ``lease.json`` in the run's folder, renewed while its holder lives.

A driver that finds a lease with a sign of life in the last ``Timing.stale`` seconds is refused and told who
holds it. An older lease is taken over, after it was watched for one more renewal, so that clocks that differ do
no harm; that of a process of this machine which is gone is taken over at once. A holder that finds its lease
in other hands stops. What is guaranteed depends on the filesystem:

- On a local disk, and a shared one with working file locks, looking at the lease and writing it is one step
  under a lock: of any number of drivers exactly one gets it.
- An object store has no such step. A driver writes its lease, waits ``Timing.settle`` seconds and reads it again;
  the last one to write has it, the others are refused. A driver that is held up for longer than that between
  looking and writing can overwrite a lease that is held. Its holder sees that at the next renewal and stops, so
  two drivers may work side by side for ``Timing.renew`` seconds. That costs work and no rows: a shard's rows
  and name do not depend on who makes it, and it appears whole or not at all.
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
from jsfree.run.folder import Folder

log = logging.getLogger(__name__)

LEASE = "lease.json"
LOCK = ".lease.lock"
LOCK_SECONDS = 30.0
LOST = signal.SIGUSR1


@dataclass(frozen=True)
class Timing:
    """Seconds between renewals, without a renewal until a lease is stale, and for a write to be seen by all."""

    renew: float = 15.0
    stale: float = 90.0
    settle: float = 2.0


@dataclass(frozen=True)
class Holder:
    """What ``lease.json`` says; times are UTC, in ISO 8601.

    ``machine`` names one boot of one machine and its process table, ``started`` the process that ``pid`` meant.
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
        """A new lease for this process."""
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
        """Seconds since the last renewal, by this machine's clock."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.renewed)).total_seconds()

    def is_gone(self) -> bool:
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
        return f"{self.user} on {self.host} (process {self.pid}) since {self.since}, last sign of life {self.renewed}"


class Lease:
    """Holds the lease of a run's folder for a ``with`` block.

    In the main thread a lost lease interrupts the block; in any other thread it is reported when the block ends.

    Raises:
        LeaseError: another driver holds the lease, or took it while the block ran.
        StorageError: the folder cannot be read or written.
    """

    def __init__(self, folder: Folder, timing: Timing | None = None) -> None:
        self.folder = folder
        self.timing = timing or Timing()
        self._mine = Holder.this_process(self.timing)
        self._ended = threading.Event()
        self._lost = ""
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._handler: Any = None
        """The handler of ``LOST`` that ours replaced."""

    def __enter__(self) -> Lease:
        while not self._claim(self._judged()):
            pass  # the lease changed meanwhile: judge it again
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(LOST, _interrupt)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._handler is not None:
            signal.signal(LOST, signal.SIG_IGN)  # too late to interrupt: what follows must be done
        self._thread.join()
        if self._handler is not None:
            signal.signal(LOST, self._handler)
            self._handler = None
        if self._lost:
            raise LeaseError(self._lost) from error
        with suppress(StorageError):  # it goes stale by itself
            self._release()

    @property
    def lost(self) -> bool:
        """Whether the run is in other hands by now."""
        return bool(self._lost)

    def _judged(self) -> Holder | None:
        """The lease that may be replaced: none, or a dead one.

        Raises:
            LeaseError: its holder lives.
        """
        held = self._read()
        if held is None or held.is_gone():
            return held
        if abs(held.age()) <= held.stale_after:
            raise LeaseError(self._refusal(held))
        log.warning("%s: lease of %s looks stale; watching it for one renewal", self.folder.uri, held)
        time.sleep(held.renew_every + self.timing.settle)
        watched = self._read()
        if watched is not None and watched != held:
            raise LeaseError(self._refusal(watched))
        return watched

    def _claim(self, replaced: Holder | None) -> bool:
        """Write our lease in place of the one that was judged; False when another is there by now.

        Raises:
            LeaseError: another driver wrote its own at the same time.
        """
        with _locked(self.folder) as alone:
            if self._read() != replaced:
                return False
            self._write()
        if not alone:
            time.sleep(self.timing.settle)
            held = self._read()
            if held is None or held.token != self._mine.token:
                raise LeaseError(self._refusal(held or self._mine))
        return True

    def _keep_renewing(self) -> None:
        renewed = time.monotonic()
        while not self._ended.wait(self.timing.renew):
            try:
                with _locked(self.folder):
                    held = self._read()
                    if held is None or held.token != self._mine.token:
                        whose = f"taken over by {held}" if held else "removed"
                        return self._lose(f"its lease was {whose}")
                    self._write()
                renewed = time.monotonic()
            except Exception as error:  # noqa: BLE001 - whatever a store's client raises, the lease must not be left
                log.warning("lease not renewed: %s", error)
                if time.monotonic() - renewed > self.timing.stale:
                    return self._lose(f"its lease could not be renewed for {self.timing.stale:g} s ({error})")
        return None

    def _lose(self, why: str) -> None:
        self._lost = (
            f"{self.folder.uri}: stopped, for {why}; what was finished stays;"
            " run it again when no other driver works on it"
        )
        if self._handler is not None:
            signal.pthread_kill(threading.main_thread().ident or 0, LOST)

    def _release(self) -> None:
        with _locked(self.folder):
            held = self._read()
            if held is not None and held.token == self._mine.token:
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
                f"{self.folder.uri}/{LEASE} is no lease of this version", "delete it if no driver works on the run"
            ) from error

    def _write(self) -> None:
        self._mine = replace(self._mine, renewed=_now())
        self.folder.write_json(LEASE, asdict(self._mine))

    def _refusal(self, held: Holder) -> str:
        return (
            f"{self.folder.uri} is worked on by {held}; stop that driver or choose another folder with --run;"
            f" without a sign of life for {held.stale_after:g} s its lease is taken over"
        )


def _interrupt(*_: int | FrameType | None) -> None:
    # Of all exceptions Ray lets only this one and SystemExit out of its waiting calls.
    raise KeyboardInterrupt


@contextmanager
def _locked(folder: Folder) -> Iterator[bool]:
    """Keep other drivers from the lease; yields False where the filesystem has no locks."""
    lock = None
    if folder.is_local:
        try:
            os.makedirs(folder.path, exist_ok=True)
            lock = FileLock(f"{folder.path}/{LOCK}", timeout=LOCK_SECONDS)
            lock.acquire()
        except NotImplementedError:  # a network disk without locks is like an object store
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
    except (KeyError, OSError):  # a container's user id without a name
        return str(os.getuid())


def _machine() -> str:
    """Names this boot of this machine and its process table; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started, in ticks; empty for one that has ended and waits for its parent, None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]
