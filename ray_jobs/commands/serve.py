"""``jsfree serve``: a Ray session with the models of a run behind HTTP, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import ipaddress
import logging
import re
import shlex
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text

from jsfree.config import RunConfig
from jsfree.errors import ConfigError, ServeError, StorageError
from jsfree.run.folder import Folder
from jsfree.run.locations import require_outside_runs
from ray_jobs.cluster.capacity import Node, alive_nodes, describe, fitting, inventory
from ray_jobs.cluster.session import Cluster
from serve.deploy import NAME, deploy_yaml, http_options

EXAMPLE = "example.png"


def serve_models(run: str, overrides: list[str], console: Console) -> None:
    """Serve a run until a signal comes.

    Raises:
        JsfreeError: there is no finished run, a setting is wrong, the port is taken, or the models do not start.
    """
    from serve.app import Arguments, build, serving_config

    _leave_on_signals()
    config = serving_config(run, overrides)
    application = build(Arguments(run=run, settings=overrides))
    _require_free(config)
    warn_if_open(config, console)
    console.print("Starting Ray and loading the models ...")
    with suppress(KeyboardInterrupt), Cluster(_sized(config)) as cluster:
        cluster.ensure()
        if cluster.is_local:
            require_room(config, alive_nodes())
        with _serving(config, application, cluster.is_local):
            console.print(usage(config), soft_wrap=True)
            threading.Event().wait()


def write_yaml(run: str, overrides: list[str], file: Path, console: Console) -> None:
    """Write the configuration for ``serve deploy``.

    Raises:
        JsfreeError: there is no finished run, a setting is wrong, or the file cannot be written.
    """
    from jsfree.run.run import Run
    from serve.app import served_models, serving_config

    config = serving_config(run, overrides)
    served_models(Run(config))
    if file.exists():
        require_outside_runs("--write-yaml", Folder(str(file.absolute())))  # it would replace a file of the run
    warn_if_open(config, console)
    try:
        file.write_text(deploy_yaml(config, overrides, str(file)), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}") from error
    console.print(f"Configuration: {file}    ({shlex.join(['serve', 'deploy', str(file)])})", soft_wrap=True)


def warn_if_open(config: RunConfig, console: Console) -> None:
    """Say that nobody is asked for a key, where others than this machine can ask."""
    if not _is_loopback(config.serve.host):
        console.print(
            Text.assemble(
                ("warning:", "bold yellow"),
                f" {config.serve.host} is not loopback, and there is no authentication yet:"
                " whoever reaches the port may ask the models",
            ),
            soft_wrap=True,
        )


def usage(config: RunConfig) -> str:
    """What is printed when the server answers: its address and a command to copy."""
    address = f"http://{_reachable(config.serve.host)}:{config.serve.port}"
    picture = shlex.quote(_example_picture(config))
    body = f"""(printf '{{"image": "data:image/png;base64,'; base64 -w0 {picture}; printf '"}}')"""
    return "\n".join(
        (
            f"Serving {config.run} at {address}    (OpenAI base URL {address}/v1, models: before, after)",
            "Try it:",
            f"  {body} | curl -s {address}/compare -H 'Content-Type: application/json' -d @-",
            "Ctrl-C stops.",
        )
    )


def _example_picture(config: RunConfig) -> str:
    """A picture to ask about: a scene that no round has trained on, written into a MiniWorld run's folder."""
    folder = Folder(config.run)
    if config.source.kind != "miniworld" or not folder.is_local:
        return "PICTURE.png"
    from jsfree.miniworld import world

    if not folder.exists(EXAMPLE):
        folder.write(EXAMPLE, world.png_bytes(world.scene("test", 0)))
    return str(Path(config.run) / EXAMPLE)


@contextmanager
def _serving(config: RunConfig, application: Any, is_local: bool) -> Iterator[None]:
    """The application, answering; taken down at the end.

    Raises:
        ServeError: Serve runs already on this cluster, or a replica does not start.
    """
    from ray import serve as ray_serve
    from ray.exceptions import RayError

    if ray_serve.status().proxies:
        raise ServeError("Ray Serve runs on this cluster already", "use --write-yaml FILE and `serve deploy FILE`")
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # failures come back as exceptions
    answering = False
    try:
        try:
            ray_serve.start(proxy_location="HeadOnly", http_options=http_options(config))
            ray_serve.run(application, name=NAME, route_prefix="/")
        except (RayError, RuntimeError) as error:
            raise ServeError(f"the models do not start: {_reason(error)}") from error
        answering = True
        yield
    finally:
        if not is_local:
            ray_serve.shutdown()
        elif answering:  # the rest ends with the cluster, and the cluster with this process
            ray_serve.delete(NAME)


def _reason(error: Exception) -> str:
    """What a replica that did not start said: an error of ours where there is one, else the last line."""
    from ray import serve as ray_serve

    application = ray_serve.status().applications.get(NAME)
    deployments = application.deployments.values() if application else ()
    text = "\n".join([str(error), *(deployment.message for deployment in deployments)])
    ours = re.findall(r"jsfree\.errors\.\w+: (.+)", text)
    return ours[-1] if ours else (text.strip().splitlines() or ["no reason given; try --debug"])[-1]


def require_room(config: RunConfig, nodes: Sequence[Node]) -> None:
    """Refuse replicas that a local cluster can never hold: Serve would wait for nodes for ever.

    Raises:
        ServeError: the models ask for more than there is.
    """
    models = {"before": config.serve.before, "after": config.serve.after}
    gpus = sum(model.replicas * model.gpus for model in models.values())
    fits = all(sum(fitting(node, model) for node in nodes) >= model.replicas for model in models.values())
    if not fits or gpus > sum(node.get("GPU", 0) for node in nodes):
        asked = ", ".join(f"{role}: {model.replicas} x ({describe(model)})" for role, model in models.items())
        raise ServeError(
            f"the models ask for {asked}",
            f"there is room in {inventory(nodes)}; lower serve.before and serve.after (replicas, cpus, gpus)",
        )


def _sized(config: RunConfig) -> RunConfig:
    """The configuration with a local cluster large enough: all replicas and the HTTP side."""
    models = (config.serve.before, config.serve.after)
    cpus = 1 + sum(model.replicas * model.cpus for model in models)
    ray = config.ray.model_copy(update={"num_cpus": config.ray.num_cpus or max(4, int(cpus) + 1)})
    return config.model_copy(update={"ray": ray})


def _require_free(config: RunConfig) -> None:
    """Refuse an address that cannot be listened on, before minutes are spent on starting."""
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


def _leave_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end the server in order; a second signal kills."""

    def leave(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt  # what Ray, waiting in native code, passes on as it is

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _reachable(host: str) -> str:
    """The host in an address that this machine can open."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{shown}]" if ":" in shown else shown
