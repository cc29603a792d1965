"""Starting or joining Ray, only when a stage has work, and quietly."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jsfree import errors
from jsfree.config import RunConfig
from jsfree.errors import ConfigError, JsfreeError, StageError
from jsfree.run.filesystems import nearest_existing
from ray_jobs.shards import board

QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

ANSWER_SECONDS = 5.0
SYSTEM_FOLDER = "/tmp"
SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux."""
LONGEST_SOCKET = "/session_2026-11-26_14-21-53_123456_4194304/sockets/plasma_store.99"
"""The longest path of a socket in a session's folder."""


class Cluster:
    """A Ray session that starts at the first ``ensure`` and ends with the ``with`` block."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._started = False
        self.is_local = False  # started here, with this machine's resources and no more to come
        self._board: Any = None
        self.nodes: dict[str, dict[str, Any]] = {}  # what is known of the nodes that were seen, by id

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            import ray

            ray.shutdown()

    @property
    def board(self) -> Any:
        """The session's board, which says what is to be done and who lives."""
        if self._board is None:
            self._board = board.put_up()
        return self._board

    def ensure(self) -> None:
        """Have a Ray session; one that the caller started is used and left alone.

        Raises:
            ConfigError: RAY_ADDRESS is an address for submitting jobs.
            StageError: there is no cluster at the configured address, or no session can be started here.
        """
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        if ray.is_initialized():
            return
        address = self.config.ray.address or os.environ.get("RAY_ADDRESS")
        if address and address.startswith(("http://", "https://")):
            raise ConfigError(
                f"{address!r} takes submitted jobs, not drivers", "unset RAY_ADDRESS to work here, or `ray job submit`"
            )
        _require_answer(address)
        local: dict[str, Any] = {}
        if not address:
            local = {"num_cpus": self.config.ray.num_cpus or self._cpus(), "include_dashboard": False}
            local["_temp_dir"] = session_folder()
            _provide_token()
        try:
            with _own_sigterm(), _silent_stderr():  # the backend announces its log level there, before it heeds it
                ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
        except ConnectionError as error:
            raise StageError(f"no Ray cluster answers at {address!r}: {error}", "set ray.address") from error
        except Exception as error:  # Ray raises whatever its parts do
            with suppress(Exception):
                ray.shutdown()  # what had started already
            raise _no_session(address, error) from error
        self._started = True
        self.is_local = not address
        _quieten_ray_data()

    def _cpus(self) -> float:
        """Logical CPUs that the hungriest stage asks for, and one for what Ray itself runs."""
        stages = (self.config.generate, self.config.score, self.config.train)
        needed = max(stage.resources.replicas * stage.resources.cpus for stage in stages)
        return max(4, int(needed) + 1)


def session_folder() -> str:
    """The folder of a local Ray session's sockets and logs: the one that Ray would take, or a shorter one.

    A socket's path has at most ``SOCKET_BYTES`` bytes, which a folder of a batch system in TMPDIR can exceed, and Ray
    takes only ASCII there.

    Raises:
        StageError: none of the folders can be used.
    """
    own = os.path.join(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SYSTEM_FOLDER, "ray")
    most = SOCKET_BYTES - len(LONGEST_SOCKET)
    shorter = (f"{SYSTEM_FOLDER}/ray", f"{SYSTEM_FOLDER}/ray-{os.getuid()}")
    for folder in (own, *shorter):
        if folder.isascii() and len(folder) <= most and os.path.isabs(folder) and _is_writable(folder):
            return folder
    raise StageError(
        f"no folder for Ray's sockets: neither {own} nor {shorter[0]} is a folder that can be written with an ASCII"
        f" path of at most {most} bytes",
        "set TMPDIR to such a folder",
    )


def _provide_token() -> None:
    """Give a local session a token of its own where Ray could not keep one in the home folder."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    try:
        folder = Path.home() / ".ray"
    except RuntimeError:  # neither HOME nor an entry among the users
        folder = None
    if folder is None or not (os.access(folder / "auth_token", os.R_OK) or _is_writable(str(folder))):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _is_writable(folder: str) -> bool:
    """Whether files can be made in a folder, or where it would be made."""
    try:
        with tempfile.TemporaryFile(dir=nearest_existing(folder)):
            return True
    except OSError:
        return False


def _no_session(address: str | None, error: Exception) -> StageError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    if address:
        return StageError(f"the Ray cluster at {address!r} cannot be joined ({why})", "run it with --debug to see more")
    return StageError(
        f"no Ray session can be started on this machine ({why})",
        "see that TMPDIR, HOME and /dev/shm can be written and"
        " have free space, and that the machine is not overloaded, or run it with --debug to see more",
    )


def _require_answer(address: str | None) -> None:
    """See that something listens at ``host:port``, for which Ray itself would wait many minutes.

    Raises:
        StageError: nothing does.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise StageError(f"no Ray cluster answers at {address!r}: {why}", "correct ray.address, or start it") from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the driver's handler of SIGTERM, which Ray would replace, if it has one."""
    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(kept) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, kept)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Send what this process's native code writes to stderr nowhere."""
    kept = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _quieten_ray_data() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.train"):  # what they would print is told by our own errors
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def explained(stage: str) -> Iterator[None]:
    """Turn what Ray raises when a stage fails into one error that names the cause.

    An error of ours that a worker raised is raised again as what it was.
    """
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    try:
        yield
    except (RayError, TrainingFailedError) as error:
        for link in _chain(error):
            ours = _ours(link)
            if ours is not None:
                raise ours from error
        told = _told(_root(error))
        raise StageError(f"stage {stage!r} failed: {told}", "run it again to go on, or with --debug") from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that its wrappers carry, outermost first."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        current = waiting.pop(0)
        if isinstance(current, BaseException) and current not in seen:
            seen.append(current)
            yield current
            failures = getattr(current, "worker_failures", None) or {}
            waiting += [*failures.values(), getattr(current, "cause", None), current.__cause__, current.__context__]


def _root(error: BaseException) -> BaseException:
    """What an error was raised for in the first place; not what happened to be handled at that time."""
    from ray.data.exceptions import SystemException
    from ray.exceptions import UserCodeException

    for _ in range(100):
        failures = getattr(error, "worker_failures", None) or {}
        inner = next(iter(failures.values()), None) or getattr(error, "cause", None) or error.__cause__
        # The last two say nothing; what carries them has the traceback as text.
        if not isinstance(inner, BaseException) or isinstance(inner, SystemException | UserCodeException):
            break
        error = inner
    return error


def _told(root: BaseException) -> str:
    """The line of an error that says most: the last of a traceback in its text, else the first; Ray adds advice."""
    lines = str(root).strip().splitlines() or [type(root).__name__]
    raised = [line for line in lines if re.match(r"(?!ray\.)[\w.]*(Error|Exception): ", line)]
    return raised[-1] if raised else lines[0]


def _ours(error: BaseException) -> JsfreeError | None:
    """The error of ours that this one is, or that it tells of in its text (some wrappers keep no more)."""
    from ray.exceptions import RayTaskError

    # What Ray raises for an error of ours in a task is of its class too, but says it in a traceback.
    if isinstance(error, JsfreeError) and not isinstance(error, RayTaskError):
        return error
    for name, message in re.findall(r"jsfree\.errors\.(\w+): (.*)", str(error)):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, JsfreeError) and kind is not errors.RowError:
            return kind(message)
    return None
