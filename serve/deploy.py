"""The configuration file for ``serve deploy`` and a RayService.

Serve ignores misspelled keys at every level except in deployments, and then uses its defaults: all interfaces.
``check`` refuses them.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from jsfree.config import RunConfig, Serve
from jsfree.errors import ConfigError
from serve import haproxy, proxy

IMPORT_PATH = "serve.app:build"
NAME = "jsfree"
SCORER = "clip"
"""Name of the deployment of the CLIP model; those of the models have their roles as names."""
LOGGING = {"enable_access_log": False}
"""Serve's own access log has addresses of clients; ours has not."""
ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 1024 * 1024),
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
"""Read by Ray's processes on each node when they start. By default Ray runs its workers at the lowest priority, and
Serve passes each message between three threads of a replica, which here only cost time: decoding has its own. Its proxy
gets responses as objects of Ray by default, one for each event of a stream; gRPC takes less CPU time, but its default
limit of 4 MiB is too low for pictures of a run."""
SPARE_SECONDS = 10
"""Seconds by which Serve's own time limit exceeds ours: Serve answers with plain text, we with JSON."""
OPEN = "Everyone who can reach the port can use the models, unless the nodes have keys."
CLOSED = (
    "Set JSFREE_API_KEY on the nodes, or serve.keys_file: without a key only requests of a node itself are answered."
)
HEADER = """\
# For a running Ray cluster whose nodes have this environment: serve deploy {file}
# {access}
# Variables of each node when Ray starts:
{variables}
"""


def variables(serve: Serve) -> dict[str, str]:
    """Variables that Ray's processes read when they start."""
    own = {proxy.VARIABLE: proxy.CALLBACK, **ENVIRONMENT}
    return {**own, **haproxy.environment(serve)} if serve.haproxy else own


def http_options(config: RunConfig) -> dict[str, Any]:
    """The HTTP options of Serve's proxies: address, port and time limit."""
    serve = config.serve
    return {"host": serve.host, "port": serve.port, "request_timeout_s": serve.request_timeout_s + SPARE_SECONDS}


def deploy_config(config: RunConfig, overrides: list[str]) -> dict[str, Any]:
    """The configuration that serves a run.

    Args:
        config: the configuration to serve with; all nodes must be able to read its ``run``.
        overrides: ``serve.key=value`` settings that differ from the run's own.
    """
    arguments: dict[str, Any] = {"run": config.run, **({"settings": overrides} if overrides else {})}
    application = {"name": NAME, "route_prefix": "/", "import_path": IMPORT_PATH, "args": arguments}
    built = {
        "proxy_location": "EveryNode",
        "http_options": http_options(config),
        "logging_config": LOGGING,
        "applications": [application],
    }
    check(built, "the configuration")
    return built


def deploy_yaml(config: RunConfig, overrides: list[str], file: str) -> str:
    """The configuration as YAML, with a comment on how to use it."""
    # A line break in the file's name must not end the comment.
    quoted = shlex.quote(file).replace("\n", "\n# ")
    header = HEADER.format(
        file=quoted,
        access=OPEN if config.serve.no_auth else CLOSED,
        variables="\n".join(f"#   {name}={value}" for name, value in variables(config.serve).items()),
    )
    return header + yaml.safe_dump(deploy_config(config, overrides), sort_keys=False)


def check(config: Mapping[str, Any], where: str) -> None:
    """Check a configuration for ``serve deploy``.

    Args:
        where: its name in error messages.

    Raises:
        ConfigError: a key is unknown, or a value is invalid.
    """
    from ray.serve.schema import ServeDeploySchema

    from serve.app import Arguments

    for path, key, valid in _unknown(ServeDeploySchema, config, ""):
        nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid keys: {', '.join(valid)}"
        raise ConfigError(f"{where}: unknown key {path + key!r}", hint)
    try:
        ServeDeploySchema.model_validate(config)
        for application in config["applications"]:
            if application.get("import_path") == IMPORT_PATH:
                Arguments.model_validate(application.get("args", {}))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"{where}: {key or 'configuration'}: {problem['msg'].lower()}") from None


def _unknown(schema: type[BaseModel], value: Any, path: str) -> Iterator[tuple[str, str, list[str]]]:
    """The keys in ``value`` that ``schema`` does not have: the path of each, the key, and the valid keys there."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _unknown(schema, entry, f"{path.rstrip('.')}[{index}].")
    if not isinstance(value, Mapping):
        return
    known = {name for field, info in schema.model_fields.items() for name in (field, info.alias) if name}
    for key, child in value.items():
        if key not in known:
            yield path, str(key), sorted(known)
        elif key in schema.model_fields:
            for nested in _sections(schema.model_fields[key].annotation):
                yield from _unknown(nested, child, f"{path}{key}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models in an annotation, also inside lists and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)
