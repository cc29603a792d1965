"""The Ray session of a run: starts Ray or joins a cluster when a stage first needs it."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsfree.config import RunConfig
from jsfree.errors import ConfigError, StageError
from jsfree.run.filesystems import nearest_existing
from ray_jobs.cluster.failures import first_line
from ray_jobs.quiet import set_environment, silence_ray, silent_output
from ray_jobs.shards import board
from ray_jobs.signals import sigterm_handler_kept

ANSWER_SECONDS = 5.0
SYSTEM_FOLDER = "/tmp"
SOCKET_BYTES = 107
"""Maximum length of the path of a Unix socket on Linux."""
LONGEST_SOCKET = "/session_2026-11-26_14-21-53_123456_4194304/sockets/plasma_store.99"
"""The longest path of a socket below Ray's folder."""
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Ray Train's process that notices nodes which a cloud is about to take back: useless in a local session."""
DEBUG_REMEDY = "run the command with --debug to see the traceback"


class Cluster:
    """A Ray session that the first ``ensure`` starts and the end of the ``with`` block stops."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._started = False
        self.is_local = False
        """Whether the session was started here, with only this machine's resources."""
        self._board: Any = None
        self.nodes: dict[str, dict[str, Any]] = {}
        """What is known about each node seen so far, by its id."""

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            import ray

            ray.shutdown()

    @property
    def board(self) -> Any:
        """The session's board actor, from which workers claim shards."""
        if self._board is None:
            self._board = board.start_board()
        return self._board

    def ensure(self) -> None:
        """Start or join a Ray session unless there is one; a session that the caller started is never stopped here.

        Raises:
            ConfigError: the address is one for submitting jobs.
            StageError: no cluster answers at the address, or no session can be started on this machine.
        """
        set_environment()
        import ray

        if not ray.is_initialized():
            self._start()
        # Otherwise an error arrives without its cause: Ray Data's wrapper around it is not pickled with it.
        ray.data.DataContext.get_current().raise_original_map_exception = True

    def _start(self) -> None:
        import ray

        address = self.config.ray.cluster_address
        if address and address.startswith(("http://", "https://")):
            raise ConfigError(
                f"{address!r} accepts submitted jobs, not drivers",
                "unset RAY_ADDRESS to run on this machine, or use `ray job submit`",
            )
        _require_listener(address)
        local: dict[str, Any] = {}
        if not address:
            local = {"num_cpus": self.config.ray.num_cpus or self._cpus(), "include_dashboard": False}
            local["_temp_dir"] = session_folder()
            _provide_token()
            os.environ.setdefault(PREEMPTION_WATCHER, "0")
        try:
            with sigterm_handler_kept(), silent_output(2):  # the backend logs before it reads its log level
                ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
        except ConnectionError as error:
            raise StageError(f"no Ray cluster answers at {address!r}: {error}", "set ray.address") from error
        except Exception as error:  # parts of Ray raise errors of any type
            with suppress(Exception):
                ray.shutdown()  # stop what has started already
            raise _start_error(address, error) from error
        self._started = True
        self.is_local = not address
        silence_ray()

    def _cpus(self) -> float:
        """Logical CPUs of a local session: as many as the largest stage needs, and one for Ray itself."""
        stages = (self.config.generate, self.config.score, self.config.train)
        needed = max(stage.resources.replicas * stage.resources.cpus for stage in stages)
        return max(4, int(needed) + 1)


def session_folder() -> str:
    """The folder for the sockets and logs of a local Ray session: Ray's own choice if it is usable, or a shorter one.

    A batch system can set TMPDIR to a folder so long that a socket's path exceeds ``SOCKET_BYTES``. Ray also accepts
    only ASCII paths.

    Raises:
        StageError: none of the folders is usable.
    """
    default = os.path.join(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SYSTEM_FOLDER, "ray")
    max_bytes = SOCKET_BYTES - len(LONGEST_SOCKET)
    shorter = (f"{SYSTEM_FOLDER}/ray", f"{SYSTEM_FOLDER}/ray-{os.getuid()}")
    for folder in (default, *shorter):
        if folder.isascii() and len(folder) <= max_bytes and os.path.isabs(folder) and _is_writable(folder):
            return folder
    raise StageError(
        f"no folder for Ray's sockets: neither {default} nor {shorter[0]} is a writable folder with an ASCII path of"
        f" at most {max_bytes} bytes",
        "set TMPDIR to such a folder",
    )


def _provide_token() -> None:
    """Set an authentication token for a local session if Ray cannot store one in the home folder."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    try:
        folder = Path.home() / ".ray"
    except RuntimeError:  # HOME is not set, and the user has no entry in the password database
        folder = None
    if folder is None or not (os.access(folder / "auth_token", os.R_OK) or _is_writable(str(folder))):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _is_writable(folder: str) -> bool:
    """Whether files can be created in ``folder``, or in its nearest existing parent."""
    try:
        with tempfile.TemporaryFile(dir=nearest_existing(folder)):
            return True
    except OSError:
        return False


def _start_error(address: str | None, error: Exception) -> StageError:
    reason = f"{type(error).__name__}: {first_line(error)}"
    if address:
        return StageError(f"the Ray cluster at {address!r} cannot be joined ({reason})", DEBUG_REMEDY)
    return StageError(
        f"no Ray session can be started on this machine ({reason})",
        "check that TMPDIR, HOME and /dev/shm are writable and have free space and that the machine is not"
        f" overloaded, or {DEBUG_REMEDY}",
    )


def _require_listener(address: str | None) -> None:
    """Check that something listens at ``host:port``: Ray itself would retry for minutes.

    Raises:
        StageError: the connection fails.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StageError(
            f"no Ray cluster answers at {address!r}: {reason}", "correct ray.address, or start the cluster"
        ) from error
