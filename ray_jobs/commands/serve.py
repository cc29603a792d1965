"""``jsfree serve``: serves a run's models over HTTP with Ray Serve until Ctrl-C or SIGTERM."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from jsfree.config import RunConfig, Serve, ServedModel
from jsfree.errors import ConfigError, ServeError, StorageError
from jsfree.run.folder import Folder
from jsfree.run.locations import require_outside_runs
from jsfree.run.run import Run
from ray_jobs.cluster.capacity import Node, alive_nodes, describe, inventory, replicas_on
from ray_jobs.cluster.session import Cluster
from ray_jobs.signals import interrupt_on_signals
from serve import haproxy
from serve.deploy import LOGGING, NAME, SCORER, deploy_yaml, http_options, variables
from serve.keys import API_KEY, KeySource, is_loopback

if TYPE_CHECKING:
    from serve.failures import Failures
    from serve.http.protocol import RunModel

EXAMPLE = "example.png"
END_SECONDS = 30
"""Seconds for the end of replicas, besides those that they have for requests in progress."""
SECTIONS = {"before": "serve.before", "after": "serve.after", SCORER: "serve.scorer"}
"""Sections of the settings by the names of deployments; those of the other models share one."""


def serve_models(run: str, overrides: list[str], console: Console, api_key: str | None = None) -> None:
    """Serve a run until SIGINT or SIGTERM; on a cluster that serves another run, replace its models and return.

    Args:
        api_key: a key that is valid besides those of the file of keys.

    Raises:
        JsfreeError: the run has no trained model, a setting is invalid, keys are missing, the port is in use, or a
            model fails to start.
    """
    from serve.app import Arguments, configured

    interrupt_on_signals()
    config, models = configured(Arguments(run=run, settings=overrides))
    keys = KeySource.configured(config.serve, api_key=api_key)
    os.environ.pop(API_KEY, None)  # Ray's processes, and what they start, need no key
    for name, value in variables(config.serve).items():
        os.environ.setdefault(name, value)
    if config.serve.haproxy and config.ray.cluster_address is None:
        haproxy.require_binary()
    if config.ray.cluster_address is None:
        _require_free_port(config)
    if keys.is_empty:
        warn_about_access(config, console)
    warn_about_haproxy(config, console)
    console.print("Starting Ray and loading the models ...")
    with suppress(KeyboardInterrupt), Cluster(_with_cpus(config, models)) as cluster:
        cluster.ensure()
        if cluster.is_local:
            require_capacity(config, models, alive_nodes())
        elif _is_served():
            _deploy(config, models, keys)
            console.print(f"The running server now serves {config.run}", soft_wrap=True)
            return
        else:
            _require_free_port(config)
        with _serving(config, models, keys, cluster.is_local):
            console.print(usage(config, models, is_open=keys.is_empty), soft_wrap=True)
            threading.Event().wait()


def write_yaml(run: str, overrides: list[str], file: Path, console: Console) -> None:
    """Write the configuration for ``serve deploy``.

    Raises:
        JsfreeError: the run has no trained model, a setting is invalid, or the file cannot be written.
    """
    from serve.app import served_models, serving_config

    config = serving_config(run, overrides)
    served_models(Run(config))
    if file.exists():
        require_outside_runs("--write-yaml", Folder(str(file.absolute())))  # never overwrite a file of a run
    warn_about_access(config, console)
    warn_about_haproxy(config, console)
    try:
        file.write_text(deploy_yaml(config, overrides, str(file)), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}") from error
    console.print(f"Configuration: {file}    ({shlex.join(['serve', 'deploy', str(file)])})", soft_wrap=True)


def warn_about_access(config: RunConfig, console: Console) -> None:
    """Warn if other machines can reach the address, and everyone is answered, or nodes of a cluster need a key."""
    if is_loopback(config.serve.host):
        return
    if config.serve.no_auth:
        warning = "everyone who can reach the port can use the models, unless the server has keys"
    else:
        warning = f"requests need a key: set {API_KEY} or serve.keys_file where the server starts"
    _warn(f"{config.serve.host} is not a loopback address: {warning}", console)


def warn_about_haproxy(config: RunConfig, console: Console) -> None:
    """Name the ports that HAProxy opens, if it is used."""
    if config.serve.haproxy:
        _warn(haproxy.warning(), console)


def _warn(message: str, console: Console) -> None:
    console.print(Text.assemble(("warning:", "bold yellow"), f" {message}"), soft_wrap=True)


def usage(config: RunConfig, models: Sequence[RunModel], *, is_open: bool = True) -> str:
    """The text printed when the server is ready: its address and a command to copy.

    Args:
        models: the models that are served.
        is_open: whether requests need no key.
    """
    address = f"http://{_reachable(config.serve.host)}:{config.serve.port}"
    key = "" if is_open else f' -H "Authorization: Bearer ${API_KEY}"'
    roles = ", ".join(model.role for model in models)
    picture = shlex.quote(_example_picture(config))
    body = f"""(printf '{{"image": "data:image/png;base64,'; base64 -w0 {picture}; printf '"}}')"""
    return "\n".join(
        (
            f"Serving {config.run} at {address}    (OpenAI base URL {address}/v1, models: {roles})",
            f"Page: {address}/    (before and after side by side; the run at {address}/runs)",
            "Try it:",
            f"  {body} | curl -s {address}/compare{key} -H 'Content-Type: application/json' -d @-",
            "Press Ctrl-C to stop.",
        )
    )


def _example_picture(config: RunConfig) -> str:
    """An image for the printed command: in a MiniWorld run a test scene, which is written into the run's folder."""
    folder = Folder(config.run)
    if config.source.kind != "miniworld" or not folder.is_local:
        return "PICTURE.png"
    from jsfree.miniworld import world

    if not folder.exists(EXAMPLE):
        folder.write(EXAMPLE, world.png_bytes(world.scene("test", 0)))
    return str(Path(config.run) / EXAMPLE)


@contextmanager
def _serving(config: RunConfig, models: list[RunModel], keys: KeySource, is_local: bool) -> Iterator[None]:
    """Run the application until the block ends.

    Raises:
        ServeError: Serve already runs on this cluster, or a replica does not start.
    """
    from ray import serve as ray_serve

    if ray_serve.status().proxies:
        raise ServeError("Ray Serve already runs on this cluster", "use --write-yaml FILE and `serve deploy FILE`")
    is_running = False
    try:
        _deploy(config, models, keys)
        is_running = True
        if config.serve.haproxy:
            haproxy.wait_until_ready(_reachable(config.serve.host), config.serve.port)
        yield
    finally:
        if is_running:
            _end_application(config.serve.drain_s)
        if not is_local:  # a local cluster ends with this process, and Serve with it
            ray_serve.shutdown()


def _end_application(seconds: float) -> None:
    """End the application and wait for its requests in progress, which the proxies still answer.

    ``ray_serve.shutdown`` alone would end the proxies at once, and with them all streams.

    Args:
        seconds: time that replicas have for their requests in progress.
    """
    from ray import serve as ray_serve

    ray_serve.delete(NAME, _blocking=False)  # it would wait for at most 60 s
    until = time.monotonic() + seconds + END_SECONDS
    while _is_served() and time.monotonic() < until:
        time.sleep(0.2)


def _is_served() -> bool:
    """Whether the cluster serves a run."""
    from ray import serve as ray_serve

    return NAME in ray_serve.status().applications


def _deploy(config: RunConfig, models: list[RunModel], keys: KeySource) -> None:
    """Start the application, or replace the one that runs: replicas that end finish their requests, others wait.

    Raises:
        ServeError: a replica does not start.
    """
    from ray import serve as ray_serve
    from ray.exceptions import RayError

    from serve.app import bind
    from serve.failures import Failures

    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # failures are raised as exceptions
    failures = Failures()
    try:
        ray_serve.start(proxy_location="HeadOnly", http_options=http_options(config), logging_config=LOGGING)
        ray_serve.run(bind(config, models, keys, failures.name), name=NAME, route_prefix="/")
    except (RayError, RuntimeError) as error:
        raise _start_error(failures, error) from error


def _start_error(failures: Failures, error: Exception) -> ServeError:
    """The error of a replica that did not start, or the last line that Serve reports if no replica could."""
    from ray import serve as ray_serve

    failure = failures.first()
    if failure is not None:
        return ServeError(f"the models do not start: {failure.problem}", failure.remedy)
    application = ray_serve.status().applications.get(NAME)
    deployments = application.deployments.values() if application else ()
    lines = "\n".join([str(error), *(deployment.message for deployment in deployments)]).strip().splitlines()
    reason = lines[-1].strip() if lines else "Serve gave no reason"
    return ServeError(f"the models do not start: {reason}", "use --debug to see the traceback")


def require_capacity(config: RunConfig, models: Sequence[RunModel], nodes: Sequence[Node]) -> None:
    """Check that all replicas fit on a local cluster: Serve would wait for more nodes forever.

    Raises:
        ServeError: they do not fit.
    """
    placements = _placements(config.serve, models)
    gpus = sum(placed.first_replicas * placed.gpus for placed in placements.values())
    fits = all(
        sum(replicas_on(node, placed) for node in nodes) >= placed.first_replicas for placed in placements.values()
    )
    if not fits or gpus > sum(node.get("GPU", 0) for node in nodes):
        required = ", ".join(
            f"{role}: {placed.first_replicas} x ({describe(placed)})" for role, placed in placements.items()
        )
        sections = dict.fromkeys(SECTIONS.get(name, "serve.between") for name in placements)
        raise ServeError(
            f"the models need {required}; available: {inventory(nodes)}",
            f"lower {' and '.join(sections)} (replicas, cpus, gpus)",
        )


def _placements(settings: Serve, models: Sequence[RunModel]) -> dict[str, ServedModel]:
    """By name, all deployments that reserve resources: the models, and CLIP if it has its own."""
    placements = {model.role: settings.placement_of(model.role) for model in models}
    return {**placements, SCORER: settings.scorer} if settings.scores == "deployment" else placements


def _with_cpus(config: RunConfig, models: Sequence[RunModel]) -> RunConfig:
    """The configuration with enough CPUs in a local Ray session for all replicas and the HTTP server."""
    placements = _placements(config.serve, models).values()
    cpus = 1 + sum(placed.most_replicas * placed.cpus for placed in placements)
    ray = config.ray.model_copy(update={"num_cpus": config.ray.num_cpus or max(4, int(cpus) + 1)})
    return config.model_copy(update={"ray": ray})


def _require_free_port(config: RunConfig) -> None:
    """Check that the address can be bound before minutes are spent on loading models."""
    host, port = config.serve.host, config.serve.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror})", "choose another --host or --port"
        ) from error


def _reachable(host: str) -> str:
    """The host to put into a URL: this machine if the server listens on all interfaces."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{name}]" if ":" in name else name
