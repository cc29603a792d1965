"""The routes of the HTTP API.

``create_app`` does not use Ray: the same application runs in a Serve replica and in a test.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from jsfree.config import Serve
from serve.http import errors, openapi, operations, questions, responses, schema, streaming
from serve.http.bodies import LARGE
from serve.http.compare import Comparer
from serve.http.errors import ApiError
from serve.http.metering import metered
from serve.http.metrics import Metrics
from serve.http.protocol import Answer, CaptionModel, Question, Refusal, RunModel, Scorer
from serve.keys import NO_KEYS, KeySource

HEALTH_SECONDS = 5.0
Parsed = TypeVar("Parsed")


def create_app(
    models: Sequence[RunModel],
    replicas: Mapping[str, CaptionModel],
    settings: Serve,
    prompt: str,
    keys: KeySource = NO_KEYS,
    scorer: Scorer | None = None,
) -> FastAPI:
    """The application.

    Args:
        models: the models that are served, in the order of their rounds.
        replicas: the interface to each model, by role.
        prompt: the default prompt of ``/v1/compare``.
        keys: the keys that requests must have; without any, only this machine is answered.
        scorer: scores the sentences of comparisons; None: they have no scores.
    """
    app = FastAPI(title="jsfree", docs_url=None, redoc_url=None, openapi_url=None)
    metrics = Metrics()
    api = Api(models, metered(replicas, metrics, settings), settings, prompt, scorer)
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"])
    for path in ("/v1/compare", "/compare"):
        app.add_api_route(path, api.compare, methods=["POST"])
    for path, route in (
        ("/v1/models", api.list_models),
        ("/v1/models/{model}", api.show_model),
        ("/healthz", api.health),
    ):
        app.add_api_route(path, route, methods=["GET", "HEAD"])
    operations.add_routes(
        app, metrics, openapi.document(settings, api.identifiers, needs_key=not keys.is_empty), api.health
    )
    errors.install(app)
    operations.add_middleware(app, settings, metrics, keys)
    return app


class Api:
    """The handlers of the routes."""

    def __init__(
        self,
        models: Sequence[RunModel],
        replicas: Mapping[str, CaptionModel],
        settings: Serve,
        prompt: str,
        scorer: Scorer | None,
    ) -> None:
        self._replicas = replicas
        self._settings = settings
        self._prompt = prompt
        self._models = {model.role: model for model in models}
        self._roles = {identifier: model.role for model in models for identifier in (model.role, model.name)}
        self._comparer = Comparer(models, replicas, settings, scorer)
        self._created = int(time.time())
        self._context_lengths: dict[str, int | None] = {}
        self._large_bodies = ThreadPoolExecutor(1, "large-body")

    @property
    def identifiers(self) -> list[str]:
        """The names and roles of the models."""
        return list(self._roles)

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``: a conversation with one model about an image."""
        chat, question = await self._parsed(self._chat_question, await _content(request))
        replicas = self._replicas[self._roles[chat.model]]
        if not chat.stream:
            answer = _answered(await replicas.caption(question))
            return JSONResponse(responses.completion(chat.model, answer))
        chunks = responses.CompletionChunks(
            chat.model, chat.n, chat.stream_options.include_usage, with_logprobs=chat.logprobs
        )
        stream = replicas.stream(question)
        started = await streaming.start(stream, "messages", "messages")
        return streaming.response(streaming.completion_events(stream, started, chunks), self._settings)

    async def compare(self, request: Request) -> Response:
        """``POST /v1/compare``: one image and a text for several models, with the same random numbers."""
        compare, question = await self._parsed(self._compare_question, await _content(request))
        roles = self._compared(compare)
        if not compare.stream:
            return JSONResponse(await self._comparer.compare(question, roles, scored=compare.scores))
        events = self._comparer.events(question, roles, scored=compare.scores)
        return streaming.response(await streaming.started(events), self._settings)

    async def list_models(self) -> dict[str, Any]:
        """``GET /v1/models``: all models by name, and two of them by their roles ``before`` and ``after``."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._described(identifier)) for identifier in self._roles]
        return {"object": "list", "data": [task.result() for task in tasks]}

    async def show_model(self, model: str) -> dict[str, Any]:
        """``GET /v1/models/{model}``: one model."""
        self._role(model)
        return await self._described(model)

    async def health(self) -> dict[str, Any]:
        """``GET /healthz``: whether decoding makes progress in all models."""
        async with asyncio.TaskGroup() as group:
            checks = {role: group.create_task(self._healthy(role)) for role in self._replicas}
        unhealthy = [role for role, check in checks.items() if not check.result()]
        if unhealthy:
            raise ApiError(503, f"not decoding: {', '.join(unhealthy)}", code="unavailable", kind="server_error")
        return {"status": "ok", "models": {role: model.name for role, model in self._models.items()}}

    async def _parsed(self, parse: Callable[[bytes], Parsed], body: bytes) -> Parsed:
        """Parse a body in a thread, because megabytes would block the other requests.

        Large bodies have a thread of their own, in which they are parsed one at a time: many of them do not occupy the
        threads that the others need.
        """
        thread = self._large_bodies if len(body) > LARGE else None
        return await asyncio.get_running_loop().run_in_executor(thread, copy_context().run, parse, body)

    def _chat_question(self, body: bytes) -> tuple[schema.ChatRequest, Question]:
        """A chat request, and the question in it."""
        chat = schema.parse(schema.ChatRequest, body, self._settings)
        self._role(chat.model)
        return chat, questions.chat_question(chat, self._settings)

    def _compare_question(self, body: bytes) -> tuple[schema.CompareRequest, Question]:
        compare = schema.parse(schema.CompareRequest, body, self._settings)
        return compare, questions.compare_question(compare, self._settings, self._prompt)

    def _compared(self, compare: schema.CompareRequest) -> list[str]:
        """Roles of the models to compare, each once: by default all."""
        return list(dict.fromkeys(self._role(name, "models") for name in compare.models or self._models))

    async def _healthy(self, role: str) -> bool:
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                return await self._replicas[role].healthy()
        except TimeoutError:
            return False

    def _role(self, identifier: str, param: str = "model") -> str:
        if identifier not in self._roles:
            message = f"no such model; choose from {', '.join(self._roles)}"
            raise errors.invalid(message, param, "model_not_found", 404)
        return self._roles[identifier]

    async def _context_length(self, role: str) -> int | None:
        if self._context_lengths.get(role) is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEALTH_SECONDS):
                    self._context_lengths[role] = await self._replicas[role].context_length()
        return self._context_lengths.get(role)

    async def _described(self, identifier: str) -> dict[str, Any]:
        model = self._models[self._roles[identifier]]
        return {
            "id": identifier,
            "object": "model",
            "created": self._created,
            "owned_by": "jsfree",
            "root": model.name,
            "parent": model.parent,
            "max_model_len": await self._context_length(model.role),
        }


async def _content(request: Request) -> bytes:
    """The body; unlike ``request.body()``, the request keeps no copy of it while the caption is decoded."""
    return b"".join([part async for part in request.stream()])


def _answered(outcome: Answer | Refusal) -> Answer:
    """Return an answer; raise a refusal as ``ApiError``."""
    if isinstance(outcome, Refusal):
        raise errors.refused(outcome, "messages", "messages")
    return outcome
