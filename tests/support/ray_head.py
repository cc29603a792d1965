"""A Ray cluster of one node that requires a token, for tests of commands that connect to a cluster."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SECONDS = 240.0
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class RayHead:
    """A head node that accepts connections.

    Attributes:
        address: of the cluster.
        dashboard: URL of the dashboard and of the API for jobs, which may start a little later.
        token: the token that every request needs.
        environment: variables of a process that uses the cluster, without ``RAY_ADDRESS``.
        log: what the node printed.
    """

    address: str
    dashboard: str
    token: str
    environment: dict[str, str]
    log: Path


@contextmanager
def ray_head(name: str, cpus: int, variables: Mapping[str, str] | None = None) -> Iterator[RayHead]:
    """Start a head node with so many logical CPUs, and stop it and its children at the end.

    Args:
        name: prefix of its folder's name; short.
        cpus: its logical CPUs.
        variables: variables of its environment besides those of this process.
    """
    folder = Path(tempfile.mkdtemp(prefix=name, dir="/tmp"))  # short: sockets lie in it
    token = secrets.token_hex(32)
    (folder / "token").touch(0o600)
    (folder / "token").write_text(token)
    gcs, dashboard, agent, client = free_ports(4)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_") and key != "PYTHONPATH"},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        **(variables or {}),
    }
    command = [
        *(RAY, "start", "--head", "--block", f"--num-cpus={cpus}", f"--temp-dir={folder}/ray", f"--port={gcs}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
        *("--min-worker-port=0", "--max-worker-port=0"),
    ]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True, close_fds=True
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        head = RayHead(f"127.0.0.1:{gcs}", url, token, environment, folder / "head.log")
        _wait_until_listening(gcs, process, head.log)
        yield head
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address on which nothing listens."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and its children; ``ray stop`` would stop every Ray session of the machine."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    _, remaining = psutil.wait_procs(family, timeout=5)
    for member in remaining:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.kill()
    process.wait()


def _wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"the head node does not listen: {log.read_text()}")
