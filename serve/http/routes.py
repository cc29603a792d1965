"""The routes of the HTTP API.

``create_app`` does not use Ray: the same application runs in a Serve replica and in a test.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request

from jsfree.config import Serve
from serve.http import errors, operations, schema
from serve.http.errors import ApiError
from serve.http.metrics import Metrics
from serve.http.protocol import AFTER, BEFORE, Answer, CaptionModel, Question, Refusal, RunModel
from serve.keys import NO_KEYS, KeySource

HEALTH_SECONDS = 5.0


def create_app(
    models: Sequence[RunModel],
    replicas: Mapping[str, CaptionModel],
    settings: Serve,
    prompt: str,
    keys: KeySource = NO_KEYS,
) -> FastAPI:
    """The application.

    Args:
        models: the models before and after training.
        replicas: the interface to each model, by role.
        prompt: the default prompt of ``/compare``.
        keys: the keys that requests must have; without any, only this machine is answered.
    """
    app = FastAPI(title="jsfree", docs_url=None, redoc_url=None, openapi_url=None)
    api = Api(models, replicas, settings, prompt)
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"])
    app.add_api_route("/compare", api.compare, methods=["POST"])
    for path, route in (
        ("/v1/models", api.list_models),
        ("/v1/models/{model}", api.show_model),
        ("/healthz", api.health),
    ):
        app.add_api_route(path, route, methods=["GET", "HEAD"])
    metrics = Metrics()
    operations.add_routes(app, metrics, api.health)
    errors.install(app)
    operations.add_middleware(app, settings, metrics, keys)
    return app


class Api:
    """The handlers of the routes."""

    def __init__(
        self, models: Sequence[RunModel], replicas: Mapping[str, CaptionModel], settings: Serve, prompt: str
    ) -> None:
        self._replicas = replicas
        self._settings = settings
        self._prompt = prompt
        self._names = {model.role: model.name for model in models}
        self._roles = {identifier: model.role for model in models for identifier in (model.role, model.name)}
        self._created = int(time.time())

    async def chat(self, request: Request) -> dict[str, Any]:
        """``POST /v1/chat/completions``: one image and a text for one model."""
        # In a thread: parsing and decoding megabytes would block the other requests.
        model, question = await asyncio.to_thread(self._chat_question, await _content(request))
        role = self._roles[model]
        answer = _answered(await self._replicas[role].caption(question), "messages")
        return schema.completion(model, answer)

    async def compare(self, request: Request) -> dict[str, Any]:
        """``POST /compare``: one image and a text for both models, with the same random numbers."""
        question = await asyncio.to_thread(self._compare_question, await _content(request))
        async with asyncio.TaskGroup() as both:
            before, after = (both.create_task(self._ask(role, question)) for role in (BEFORE, AFTER))
        answers = {BEFORE: _answered(before.result()), AFTER: _answered(after.result())}
        captions = {
            role: {
                "model": self._names[role],
                "text": answer.choices[0].text,
                "finish_reason": answer.choices[0].finish,
            }
            for role, answer in answers.items()
        }
        used = schema.usage(list(answers.values()))
        created = int(time.time())
        return {"object": "comparison", "created": created, "prompt": question.prompt, **captions, "usage": used}

    async def list_models(self) -> dict[str, Any]:
        """``GET /v1/models``: both models, each by its role and by its name."""
        return {"object": "list", "data": [self._described(identifier) for identifier in self._roles]}

    async def show_model(self, model: str) -> dict[str, Any]:
        """``GET /v1/models/{model}``: one model."""
        self._role(model)
        return self._described(model)

    async def health(self) -> dict[str, Any]:
        """``GET /healthz``: whether decoding makes progress in both models."""
        async with asyncio.TaskGroup() as group:
            checks = {role: group.create_task(self._healthy(role)) for role in self._replicas}
        unhealthy = [role for role, check in checks.items() if not check.result()]
        if unhealthy:
            raise ApiError(503, f"not decoding: {', '.join(unhealthy)}", code="unavailable", kind="server_error")
        return {"status": "ok", "models": self._names}

    def _chat_question(self, body: bytes) -> tuple[str, Question]:
        """The model of a chat request, and the question for it."""
        chat = schema.parse(schema.ChatRequest, body, self._settings)
        self._role(chat.model)
        return chat.model, schema.chat_question(chat, self._settings)

    def _compare_question(self, body: bytes) -> Question:
        compare = schema.parse(schema.CompareRequest, body, self._settings)
        return schema.compare_question(compare, self._settings, self._prompt)

    async def _ask(self, role: str, question: Question) -> Answer | Refusal:
        return await self._replicas[role].caption(question)

    async def _healthy(self, role: str) -> bool:
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                return await self._replicas[role].healthy()
        except TimeoutError:
            return False

    def _role(self, identifier: str) -> str:
        if identifier not in self._roles:
            message = f"no such model; choose from {', '.join(self._roles)}"
            raise errors.invalid(message, "model", "model_not_found", 404)
        return self._roles[identifier]

    def _described(self, identifier: str) -> dict[str, Any]:
        root = self._names[self._roles[identifier]]
        return {"id": identifier, "object": "model", "created": self._created, "owned_by": "jsfree", "root": root}


async def _content(request: Request) -> bytes:
    """The body; unlike ``request.body()``, the request keeps no copy of it while the caption is decoded."""
    return b"".join([part async for part in request.stream()])


def _answered(outcome: Answer | Refusal, param: str | None = None) -> Answer:
    """Return an answer; raise a refusal as ``ApiError``."""
    if isinstance(outcome, Refusal):
        raise errors.refused(outcome, param or "image", param or "prompt")
    return outcome
