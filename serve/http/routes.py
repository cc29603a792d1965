"""The HTTP API: routes over two models that can be asked, wherever they are.

``create_app`` knows no Ray: the same application answers in a Serve replica and in a test.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request

from jsfree.config import Serve
from serve.http import errors, schema
from serve.http.errors import ApiError
from serve.http.limits import Guard
from serve.http.protocol import AFTER, BEFORE, Answer, CaptionModel, Question, Refusal, RunModel

HEALTH_SECONDS = 5.0


def create_app(
    models: Sequence[RunModel], replicas: Mapping[str, CaptionModel], settings: Serve, prompt: str
) -> FastAPI:
    """The application.

    Args:
        models: the model before and the one after.
        replicas: how each is asked, by role.
        prompt: what ``/compare`` asks where a request names no prompt.
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
    errors.install(app)
    app.add_middleware(Guard, settings=settings)
    return app


class Api:
    """The routes."""

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
        """One image and a text to one model."""
        # Parsing and decoding megabytes would hold up the other requests.
        model, question = await asyncio.to_thread(self._chat_question, await _content(request))
        role = self._roles[model]
        answer = _answered(await self._replicas[role].caption(question), "messages")
        return schema.completion(model, answer)

    async def compare(self, request: Request) -> dict[str, Any]:
        """One image and a text to both models, on one random stream."""
        question = await asyncio.to_thread(self._question_to_both, await _content(request))
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
        """Both models, under their roles and their names."""
        return {"object": "list", "data": [self._described(identifier) for identifier in self._roles]}

    async def show_model(self, model: str) -> dict[str, Any]:
        """One model."""
        self._role(model)
        return self._described(model)

    async def health(self) -> dict[str, Any]:
        """Whether both models decode."""
        async with asyncio.TaskGroup() as all_of_them:
            checks = {role: all_of_them.create_task(self._healthy(role)) for role in self._replicas}
        ill = [role for role, check in checks.items() if not check.result()]
        if ill:
            raise ApiError(503, f"not decoding: {', '.join(ill)}", code="unavailable", kind="server_error")
        return {"status": "ok", "models": self._names}

    def _chat_question(self, body: bytes) -> tuple[str, Question]:
        """The model that a chat request names, and what it asks of it."""
        asked = schema.parsed(schema.ChatRequest, body, self._settings)
        self._role(asked.model)
        return asked.model, schema.question_of(asked, self._settings)

    def _question_to_both(self, body: bytes) -> Question:
        asked = schema.parsed(schema.CompareRequest, body, self._settings)
        return schema.question_to_both(asked, self._settings, self._prompt)

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
            message = f"there is no such model here; there are {', '.join(self._roles)}"
            raise errors.invalid(message, "model", "model_not_found", 404)
        return self._roles[identifier]

    def _described(self, identifier: str) -> dict[str, Any]:
        root = self._names[self._roles[identifier]]
        return {"id": identifier, "object": "model", "created": self._created, "owned_by": "jsfree", "root": root}


async def _content(request: Request) -> bytes:
    """The body; the request keeps no copy of it while the caption is decoded."""
    return b"".join([part async for part in request.stream()])


def _answered(outcome: Answer | Refusal, param: str | None = None) -> Answer:
    """The answer, or the refusal as an error."""
    if isinstance(outcome, Refusal):
        raise errors.refused(outcome, param or "image", param or "prompt")
    return outcome
