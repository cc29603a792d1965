"""The Ray Serve application: one deployment for each model and one for HTTP. Placement only, no arithmetic.

``serve run``, ``serve deploy`` and KubeRay's RayService import ``serve.app:build``. Its arguments are a finished run
and settings to override:

    serve run serve.app:build run=/runs/miniworld

``jsfree serve`` starts the same application, and writes the configuration file for ``serve deploy``.
"""
# No `from __future__ import annotations`: Serve reads the annotation of `build` to validate its arguments.

import shlex
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from jsfree import config as configuration
from jsfree.config import RunConfig, Serve, ServedModel
from jsfree.errors import ConfigError, RunError
from jsfree.evaluation.rounds_stop import good_rounds
from jsfree.models.contents import CAPTIONER
from jsfree.models.references import look_up
from jsfree.run.locations import require_base_from_here
from jsfree.run.run import Run
from serve.deploy import LOGGING, SCORER
from serve.direct import Address, PartReceiver, PartSender
from serve.failures import report
from serve.http import page
from serve.http import routes as api
from serve.http.protocol import AFTER, BEFORE, Answer, Part, Question, Refusal, RunModel, ScoredSentence
from serve.keys import KeySource
from serve.replicas import Replicas, ScorerReplicas

if TYPE_CHECKING:
    from serve.engines.base import CaptionEngine

MAX_ONGOING = 100_000
"""Serve's own limit of concurrent requests, never reached: Serve answers with plain text, we with JSON."""
LOAD_WINDOW_S = 11.0, 30.0
"""Bounds of the time over which the load is averaged, in seconds: Serve warns below 10, and 30 is its default."""


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
        failures: name of the queue that receives the error if the model cannot be loaded.
    """

    def __init__(self, config: RunConfig, ref: str, gpus: float, failures: str | None = None) -> None:
        try:
            from jsfree.gpus import device_of
            from serve.engines.clip import SentenceScorer

            self._engine = _engine(config, ref, gpus)
            self._scorer = SentenceScorer(config, device_of(gpus))
            self._sender = PartSender()
        except Exception as error:
            if failures is not None:
                report(failures, error)
            raise

    async def caption(self, question: Question) -> Answer | Refusal:
        """Caption an image; cancelling the call frees its slots."""
        return await self._engine.caption(question)

    async def stream(self, question: Question, address: Address | None = None) -> AsyncGenerator[Part, None]:
        """Caption an image in parts, sent to an address if it can be reached; cancelling the call frees its slots."""
        async with aclosing(self._sender.unsent(self._engine.stream(question), address)) as parts:
            async for part in parts:
                yield part

    async def score(self, image: bytes, captions: list[str]) -> list[list[ScoredSentence]] | None:
        """The sentences of captions with their scores by CLIP."""
        return await self._scorer.score(image, captions)

    async def healthy(self) -> bool:
        """Whether decoding makes progress."""
        return await self._engine.healthy()

    async def context_length(self) -> int | None:
        """Most tokens of prompt and caption."""
        return await self._engine.context_length()

    def check_health(self) -> None:
        """Raise if decoding makes no progress; Serve calls this every few seconds and then replaces the replica."""
        self._engine.check()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()
        if hasattr(self, "_sender"):
            self._sender.close()


def _engine(config: RunConfig, ref: str, gpus: float) -> "CaptionEngine[Any]":
    """The engine of ``serve.engine``."""
    if config.serve.engine == "vllm":
        from serve.engines import vllm

        return vllm.Engine(config, ref, gpus)
    from jsfree.gpus import device_of
    from serve.engines import ours

    return ours.Engine(config, ref, device_of(gpus))


class ScorerReplica:
    """A replica of the CLIP model."""

    def __init__(self, config: RunConfig, gpus: float) -> None:
        from jsfree.gpus import device_of
        from serve.engines.clip import SentenceScorer

        self._scorer = SentenceScorer(config, device_of(gpus))

    async def score(self, image: bytes, captions: list[str]) -> list[list[ScoredSentence]] | None:
        """The sentences of captions with their scores by CLIP."""
        return await self._scorer.score(image, captions)


@ray_serve.ingress()
class Http:
    """The HTTP server: validates requests and calls the models; needs no GPU."""

    def __init__(
        self,
        config: RunConfig,
        models: list[RunModel],
        deployments: dict[str, DeploymentHandle[Any]],
        keys: KeySource,
        scorer: DeploymentHandle[Any] | None,
    ) -> None:
        self._config = config
        self._keys = keys
        self._models = models
        self._scorer = None if scorer is None else ScorerReplicas(scorer)
        self._receiver = PartReceiver()
        self._replicas = {role: Replicas(handle, self._receiver) for role, handle in deployments.items()}

    def __serve_build_asgi_app__(self) -> FastAPI:
        settings, prompt = self._config.serve, self._config.prompt
        app = api.create_app(self._models, self._replicas, settings, prompt, self._keys, self._scorer)
        page.install(app, Run(self._config), self._models)
        return app

    def __del__(self) -> None:
        if hasattr(self, "_receiver"):
            self._receiver.close()


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
    if config.serve.engine == "vllm":
        from serve.engines.vllm import require_vllm

        require_vllm()  # fail here, not in a replica
    require_base_from_here(Run(config))
    models = served_models(Run(config))
    for model in models:
        look_up(model.ref, CAPTIONER, config.models)  # fail here, not in a replica
    return config, models


def bind(
    config: RunConfig, models: list[RunModel], keys: KeySource, failures: str | None = None
) -> ray_serve.Application:
    """The application for models; the queue ``failures`` receives the errors of replicas that do not start."""
    serve = config.serve
    deployments = {}
    for model in models:
        placement = serve.placement_of(model.role)
        arguments = config, model.ref, placement.gpus, failures
        deployments[model.role] = _deployment(ModelReplica, arguments, model.role, placement, serve)
    scorer = deployments[AFTER] if serve.scores == "after" else None
    if serve.scores == "deployment":
        scorer = _deployment(ScorerReplica, (config, serve.scorer.gpus), SCORER, serve.scorer, serve)
    return _bind(
        Http,
        (config, models, deployments, keys, scorer),
        name="http",
        graceful_shutdown_timeout_s=serve.drain_s,
        # Requests beyond our own limit are refused by the application, in OpenAI's format, never by Serve.
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=-1,
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
    for role in (BEFORE, AFTER, "between"):
        gpus = getattr(config.serve, role).gpus
        if gpus > 1 and config.captioner.device_map == "single":
            raise ConfigError(
                f"serve.{role}.gpus: {gpus:g}, but with the run's 'captioner.device_map: single' a model uses one GPU",
                "set it to 1 or less",
            )
    return config


def served_models(run: Run) -> list[RunModel]:
    """The models of a run that are served.

    The seed is ``before``. ``after`` is the result: the last model that the run has trained before its stop rule ended
    it. With ``serve.models: all``, those of the rounds between them are served too.

    Raises:
        RunError: the run has no trained model yet.
    """
    finished = good_rounds(run, [number for number in run.rounds() if run.manifest(number, "train") is not None])
    if not finished:
        finish = f"jsfree run --run {shlex.quote(run.folder.uri)}"
        raise RunError(f"{run.folder.uri} has no trained model yet", f"finish it with `{finish}`")
    *between, last = finished
    if run.config.serve.models == "ends":
        between = []
    return [
        RunModel(BEFORE, "m0", _absolute(run.config.captioner.versioned_ref)),
        *(RunModel(f"m{n}", f"m{n}", run.stage(n, "model").uri, f"m{n - 1}") for n in between),
        RunModel(AFTER, f"m{last}", run.stage(last, "model").uri, f"m{last - 1}"),
    ]


def _absolute(ref: str) -> str:
    """The absolute path of a local folder; other references unchanged."""
    return str(Path(ref).expanduser().absolute()) if Path(ref).expanduser().is_dir() else ref


def _deployment(
    deployed: type, arguments: tuple[Any, ...], name: str, placement: ServedModel, serve: Serve
) -> ray_serve.Application:
    actor: dict[str, Any] = {"num_cpus": placement.cpus, "num_gpus": placement.gpus}
    if placement.accelerator_type is not None:
        actor["accelerator_type"] = placement.accelerator_type
    return _bind(
        deployed,
        arguments,
        name=name,
        **_replicas(placement),
        ray_actor_options=actor,
        max_ongoing_requests=MAX_ONGOING,
        health_check_period_s=5,
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=serve.drain_s,
    )


def _replicas(placement: ServedModel) -> dict[str, Any]:
    """Serve's options for the number of replicas."""
    scaling = placement.autoscaling
    if scaling is None:
        return {"num_replicas": placement.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": scaling.min,
            "max_replicas": scaling.max,
            "target_ongoing_requests": scaling.target,
            "upscale_delay_s": scaling.up_after_s,
            "downscale_delay_s": scaling.down_after_s,
            "look_back_period_s": min(LOAD_WINDOW_S[1], max(LOAD_WINDOW_S[0], scaling.up_after_s)),
        }
    }


def _bind(deployed: type, arguments: tuple[Any, ...], **options: Any) -> ray_serve.Application:
    deployment: Any = ray_serve.deployment(deployed, logging_config=LOGGING, **options)
    bound: ray_serve.Application = deployment.bind(*arguments)
    return bound
