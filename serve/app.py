"""The application on Ray Serve: one deployment a model, one for the HTTP side. Placement only, no arithmetic.

``serve.app:build`` is what ``serve run``, ``serve deploy`` and KubeRay's RayService import; its arguments are a
finished run and settings to override:

    serve run serve.app:build run=/runs/miniworld

``jsfree serve`` does the same with the server's own settings, and writes the configuration for the others.
"""
# No `from __future__ import annotations`: Serve looks at the class that `build` takes.

import asyncio
import logging
import shlex
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve as ray_serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from jsfree import config as configuration
from jsfree.config import RunConfig, ServedModel
from jsfree.errors import ConfigError, RunError
from jsfree.models.contents import CAPTIONER
from jsfree.models.references import look_up
from jsfree.run.locations import require_base_from_here
from jsfree.run.run import Run
from serve.http import routes as api
from serve.http.protocol import AFTER, BEFORE, Answer, CaptionModel, Question, Refusal, RunModel

log = logging.getLogger(__name__)
SPARE = 32  # how much later Serve's own limits, whose errors are plain text, speak than ours


class Arguments(BaseModel):
    """What ``build`` takes; a misspelled one is refused."""

    model_config = ConfigDict(extra="forbid")

    run: str
    """Folder or URI of a finished run, as the cluster reaches it."""
    settings: list[str] = []
    """``serve.key=value`` overrides of the run's configuration."""


class ModelReplica:
    """A replica of a model."""

    def __init__(self, config: RunConfig, ref: str, gpus: float) -> None:
        from jsfree.gpus import device_of
        from serve.engines import Engine

        self._engine = Engine(config, ref, device_of(gpus))

    async def caption(self, question: Question) -> Answer | Refusal:
        """Captions of an image; cancelling the call frees the slots that it takes."""
        return await self._engine.caption(question)

    async def healthy(self) -> bool:
        """Whether the decoding advances."""
        return await self._engine.healthy()

    def check_health(self) -> None:
        """What Serve asks every few seconds: a replica that does not decode is replaced."""
        self._engine.check()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


class Replicas:
    """The replicas of a deployment as one model that can be asked."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def caption(self, question: Question) -> Answer | Refusal:
        """Captions of an image, by one of the replicas."""
        asked = self._handle.caption.remote(question)
        try:
            answer: Answer | Refusal = await asked
        except asyncio.CancelledError:
            asked.cancel()  # type: ignore[no-untyped-call]
            raise
        except RayTaskError:  # the replica lives, and would fail on the same request again
            log.exception("a replica failed on a request")
            return Refusal("failed", "the model failed on this request; the server's log has the reason")
        except (RayError, RayServeException):
            return Refusal("unavailable", "the model does not answer; it is being replaced")
        return answer

    async def healthy(self) -> bool:
        """Whether the decoding of one of the replicas advances."""
        try:
            return bool(await self._handle.healthy.remote())
        except (RayError, RayServeException):
            return False


@ray_serve.ingress()
class Http:
    """The HTTP side: it admits requests and asks the models; needs no GPU."""

    def __init__(
        self, config: RunConfig, models: list[RunModel], before: DeploymentHandle[Any], after: DeploymentHandle[Any]
    ) -> None:
        self._config = config
        self._models = models
        self._replicas: dict[str, CaptionModel] = {BEFORE: Replicas(before), AFTER: Replicas(after)}

    def __serve_build_asgi_app__(self) -> FastAPI:
        return api.create_app(self._models, self._replicas, self._config.serve, self._config.prompt)


def build(arguments: Arguments) -> ray_serve.Application:
    """The application that serves a run.

    Raises:
        ConfigError: an override is wrong, or is not about serving.
        RunError: there is no run, or none of its rounds has made a model.
        ModelError: one of the models is not there.
    """
    config = serving_config(arguments.run, arguments.settings)
    require_base_from_here(Run(config))
    models = served_models(Run(config))
    for model in models:
        look_up(model.ref, CAPTIONER, config.models)  # one that is not there must not be found out by a replica
    serve = config.serve
    before, after = (
        _deployment(config, model, placed) for model, placed in zip(models, (serve.before, serve.after), strict=True)
    )
    return _bound(
        Http,
        (config, models, before, after),
        name="http",
        max_ongoing_requests=serve.max_requests + SPARE,
        max_queued_requests=SPARE,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
    )


def serving_config(run: str, overrides: list[str]) -> RunConfig:
    """The run's own configuration with overrides of how it is served.

    Raises:
        ConfigError: an override is wrong, or is not about serving: a model is served as it was trained.
        RunError: there is no run.
    """
    for override in overrides:
        if not override.startswith(("serve.", "ray.", "models.")):
            raise ConfigError(f"{override!r}: a run is served with its own settings", "set only serve.* and ray.*")
    config = configuration.overridden(Run.existing(run).config, overrides)
    for role in (BEFORE, AFTER):
        gpus = getattr(config.serve, role).gpus
        if gpus > 1 and config.captioner.device_map == "single":
            raise ConfigError(
                f"serve.{role}.gpus: {gpus:g}, but with the run's 'captioner.device_map: single' a model uses one GPU;"
                " set it to 1 at most"
            )
    return config


def served_models(run: Run) -> list[RunModel]:
    """The seed and the last model that the run has finished.

    Raises:
        RunError: no round has made a model.
    """
    finished = [number for number in run.rounds() if run.manifest(number, "train") is not None]
    if not finished:
        finish = f"jsfree run --run {shlex.quote(run.folder.uri)}"
        raise RunError(f"{run.folder.uri} has no trained model yet", f"finish it with `{finish}`")
    last = finished[-1]
    return [
        RunModel(BEFORE, "m0", _absolute(run.config.captioner.versioned_ref)),
        RunModel(AFTER, f"m{last}", run.stage(last, "model").uri),
    ]


def _absolute(ref: str) -> str:
    """A local folder as other processes find it; other references as they are."""
    return str(Path(ref).expanduser().absolute()) if Path(ref).expanduser().is_dir() else ref


def _deployment(config: RunConfig, model: RunModel, placed: ServedModel) -> ray_serve.Application:
    actor: dict[str, Any] = {"num_cpus": placed.cpus, "num_gpus": placed.gpus}
    if placed.accelerator_type is not None:
        actor["accelerator_type"] = placed.accelerator_type
    return _bound(
        ModelReplica,
        (config, model.ref, placed.gpus),
        name=model.role,
        num_replicas=placed.replicas,
        ray_actor_options=actor,
        max_ongoing_requests=config.serve.slots + config.serve.max_waiting + SPARE,
        health_check_period_s=5,
        max_constructor_retry_count=2,
    )


def _bound(deployed: type, arguments: tuple[Any, ...], **options: Any) -> ray_serve.Application:
    deployment: Any = ray_serve.deployment(deployed, graceful_shutdown_timeout_s=5, **options)
    bound: ray_serve.Application = deployment.bind(*arguments)
    return bound
