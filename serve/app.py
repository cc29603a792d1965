"""The Ray Serve application: one deployment for each model and one for HTTP. Placement only, no arithmetic.

``serve run``, ``serve deploy`` and KubeRay's RayService import ``serve.app:build``. Its arguments are a finished run
and settings to override:

    serve run serve.app:build run=/runs/miniworld

``jsfree serve`` starts the same application, and writes the configuration file for ``serve deploy``.
"""
# No `from __future__ import annotations`: Serve reads the annotation of `build` to validate its arguments.

import asyncio
import logging
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve as ray_serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util.queue import Queue

from jsfree import config as configuration
from jsfree.config import RunConfig, ServedModel
from jsfree.errors import ConfigError, JsfreeError, RunError, ServeError
from jsfree.evaluation.rounds_stop import good_rounds
from jsfree.models.contents import CAPTIONER
from jsfree.models.references import look_up
from jsfree.run.locations import require_base_from_here
from jsfree.run.run import Run
from serve.http import routes as api
from serve.http.limits import ARRIVING
from serve.http.protocol import AFTER, BEFORE, Answer, CaptionModel, Question, Refusal, RunModel
from serve.keys import KeySource

log = logging.getLogger(__name__)
SPARE = 32
"""Requests by which Serve's own limits exceed ours: Serve answers with plain text, we with JSON."""


class Arguments(BaseModel):
    """Arguments of ``build``; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")

    run: str
    """Folder or URI of a finished run, readable from all nodes."""
    settings: list[str] = []
    """``serve.key=value`` overrides of the run's configuration."""


class ModelReplica:
    """A replica of a model.

    Args:
        failures: receives the error if the model cannot be loaded; Serve reports only its traceback as text.
    """

    def __init__(self, config: RunConfig, ref: str, gpus: float, failures: Queue | None = None) -> None:
        try:
            from jsfree.gpus import device_of
            from serve.engines import Engine

            self._engine = Engine(config, ref, device_of(gpus))
        except Exception as error:
            if failures is not None:
                known = isinstance(error, JsfreeError)
                with suppress(RayError):  # the queue may be lost; Serve still reports the traceback
                    failures.put(error if known else ServeError(f"{type(error).__name__}: {error}"))
            raise

    async def caption(self, question: Question) -> Answer | Refusal:
        """Caption an image; cancelling the call frees its slots."""
        return await self._engine.caption(question)

    async def healthy(self) -> bool:
        """Whether decoding makes progress."""
        return await self._engine.healthy()

    def check_health(self) -> None:
        """Raise if decoding makes no progress; Serve calls this every few seconds and then replaces the replica."""
        self._engine.check()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


class Replicas:
    """The replicas of a deployment behind the interface of one ``CaptionModel``."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def caption(self, question: Question) -> Answer | Refusal:
        """Caption an image with one of the replicas."""
        response = self._handle.caption.remote(question)
        try:
            answer: Answer | Refusal = await response
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        except RayTaskError:  # the replica is alive and would fail again on the same request
            log.exception("a replica failed on a request")
            return Refusal("failed", "the model failed on this request; see the server's log")
        except (RayError, RayServeException):
            return Refusal("unavailable", "the model does not answer and is being replaced; try again soon")
        return answer

    async def healthy(self) -> bool:
        """Whether decoding makes progress in one of the replicas."""
        try:
            return bool(await self._handle.healthy.remote())
        except (RayError, RayServeException):
            return False


@ray_serve.ingress()
class Http:
    """The HTTP server: validates requests and calls the models; needs no GPU."""

    def __init__(
        self,
        config: RunConfig,
        models: list[RunModel],
        before: DeploymentHandle[Any],
        after: DeploymentHandle[Any],
        keys: KeySource,
    ) -> None:
        self._config = config
        self._keys = keys
        self._models = models
        self._replicas: dict[str, CaptionModel] = {BEFORE: Replicas(before), AFTER: Replicas(after)}

    def __serve_build_asgi_app__(self) -> FastAPI:
        return api.create_app(self._models, self._replicas, self._config.serve, self._config.prompt, self._keys)


def build(arguments: Arguments) -> ray_serve.Application:
    """The application that serves a run.

    Raises:
        ConfigError: an override is invalid, does not concern serving, or keys are missing or unreadable.
        RunError: the folder holds no run, or the run has no trained model yet.
        ModelError: one of the models is missing.
    """
    config, models = configured(arguments)
    return bind(config, models, KeySource.configured(config.serve))


def configured(arguments: Arguments) -> tuple[RunConfig, list[RunModel]]:
    """The configuration to serve a run with, and its models.

    Raises:
        ConfigError, RunError, ModelError: see ``build``.
    """
    config = serving_config(arguments.run, arguments.settings)
    require_base_from_here(Run(config))
    models = served_models(Run(config))
    for model in models:
        look_up(model.ref, CAPTIONER, config.models)  # fail here, not in a replica
    return config, models


def bind(
    config: RunConfig, models: list[RunModel], keys: KeySource, failures: Queue | None = None
) -> ray_serve.Application:
    """The application for models; ``failures`` receives the errors of replicas that do not start."""
    serve = config.serve
    before, after = (
        _deployment(config, model, placement, failures)
        for model, placement in zip(models, (serve.before, serve.after), strict=True)
    )
    return _bind(
        Http,
        (config, models, before, after, keys),
        name="http",
        max_ongoing_requests=(1 + ARRIVING) * serve.max_requests + SPARE,
        max_queued_requests=SPARE,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
    )


def serving_config(run: str, overrides: list[str]) -> RunConfig:
    """The run's own configuration with overrides for serving.

    Raises:
        ConfigError: an override is invalid, or does not concern serving: a model is served as it was trained.
        RunError: the folder holds no run.
    """
    for override in overrides:
        if not override.startswith(("serve.", "ray.", "models.")):
            raise ConfigError(
                f"{override!r}: a run is served with its own settings", "set only serve.*, ray.* and models.*"
            )
    config = configuration.with_overrides(Run.existing(run).config, overrides)
    for role in (BEFORE, AFTER):
        gpus = getattr(config.serve, role).gpus
        if gpus > 1 and config.captioner.device_map == "single":
            raise ConfigError(
                f"serve.{role}.gpus: {gpus:g}, but with the run's 'captioner.device_map: single' a model uses one GPU",
                "set it to 1 or less",
            )
    return config


def served_models(run: Run) -> list[RunModel]:
    """The seed and the result of the run: the last model that it has trained before its stop rule ended it.

    Raises:
        RunError: the run has no trained model yet.
    """
    finished = good_rounds(run, [number for number in run.rounds() if run.manifest(number, "train") is not None])
    if not finished:
        finish = f"jsfree run --run {shlex.quote(run.folder.uri)}"
        raise RunError(f"{run.folder.uri} has no trained model yet", f"finish it with `{finish}`")
    last = finished[-1]
    return [
        RunModel(BEFORE, "m0", _absolute(run.config.captioner.versioned_ref)),
        RunModel(AFTER, f"m{last}", run.stage(last, "model").uri),
    ]


def _absolute(ref: str) -> str:
    """The absolute path of a local folder; other references unchanged."""
    return str(Path(ref).expanduser().absolute()) if Path(ref).expanduser().is_dir() else ref


def _deployment(
    config: RunConfig, model: RunModel, placement: ServedModel, failures: Queue | None
) -> ray_serve.Application:
    actor: dict[str, Any] = {"num_cpus": placement.cpus, "num_gpus": placement.gpus}
    if placement.accelerator_type is not None:
        actor["accelerator_type"] = placement.accelerator_type
    return _bind(
        ModelReplica,
        (config, model.ref, placement.gpus, failures),
        name=model.role,
        num_replicas=placement.replicas,
        ray_actor_options=actor,
        max_ongoing_requests=config.serve.slots + config.serve.max_waiting + SPARE,
        health_check_period_s=5,
        max_constructor_retry_count=2,
    )


def _bind(deployed: type, arguments: tuple[Any, ...], **options: Any) -> ray_serve.Application:
    deployment: Any = ray_serve.deployment(deployed, graceful_shutdown_timeout_s=5, **options)
    bound: ray_serve.Application = deployment.bind(*arguments)
    return bound
