"""The routes of the pages: the pages themselves, and the data of the run that they show.

    GET  /, /runs                   the pages, which hold no data of the run
    GET  /page/info                 what is served, and what the controls may be set to
    GET  /page/samples/{number}     an image of the run's evaluation set
    GET  /page/scenes/{number}      a new scene, if the run is one of MiniWorld
    GET  /page/votes, POST          the tally of blind votes; a further vote
    GET  /page/status               the state of the run's stages
    GET  /page/report               the run's report

No answer contains a path, the name of a machine, or the message of a failed row, except the report, which has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from jsfree.errors import JsfreeError, StorageError
from jsfree.monitor.status import read_status
from jsfree.monitor.votes import Vote, VoteReader, add_vote, tally
from jsfree.run.run import Run
from serve.http.bodies import json_object
from serve.http.errors import ApiError, invalid
from serve.http.pictures import Pictures
from serve.http.protocol import RunModel
from serve.http.schema import validation_error
from serve.page import PAGES, page

REPORT = "report/index.html"
THREADS = 4
"""Threads that read the run for the pages: a slow folder must not take those that parse requests for captions."""
RESULT = TypeVar("RESULT")
Name = Annotated[str, Field(max_length=20)]


class VoteBody(BaseModel):
    """``POST /page/votes``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    winner: Name
    loser: Name
    tie: bool
    image: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    ratio: Annotated[float, Field(ge=0, le=1)]
    views: Annotated[int, Field(ge=1, le=1000)]
    temperature: Annotated[float, Field(ge=0, le=2)]
    seed: Annotated[int, Field(ge=0, lt=2**53)]


def install(app: FastAPI, run: Run, models: Sequence[RunModel]) -> None:
    """Add the routes to an application.

    Args:
        run: the run that is served.
        models: the models that are served.
    """
    routes = PageRoutes(run, models)
    for path in PAGES:
        app.add_api_route(path, _shown(path), methods=["GET", "HEAD"])
    for path, route in (
        ("/page/info", routes.info),
        ("/page/samples/{number}", routes.sample),
        ("/page/scenes/{number}", routes.scene),
        ("/page/votes", routes.votes),
        ("/page/status", routes.status),
        ("/page/report", routes.report),
    ):
        app.add_api_route(path, route, methods=["GET", "HEAD"])
    app.add_api_route("/page/votes", routes.vote, methods=["POST"])


def _shown(path: str) -> Callable[[], Response]:
    """The route of a page."""
    headers = {
        "Content-Security-Policy": page(path).policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    def show() -> Response:
        return Response(page(path).content, media_type="text/html; charset=utf-8", headers=headers)

    return show


class PageRoutes:
    """The handlers of the routes under ``/page``. Files are read in ``THREADS`` threads of their own."""

    def __init__(self, run: Run, models: Sequence[RunModel]) -> None:
        self._run = run
        self._names = [model.name for model in models]
        self._pictures = Pictures(run)
        self._votes = VoteReader(run)
        self._threads = ThreadPoolExecutor(THREADS, "page")

    async def info(self) -> dict[str, Any]:
        """``GET /page/info``."""
        return await self._read(self._info)

    async def sample(self, number: int) -> dict[str, Any]:
        """``GET /page/samples/{number}``: an evaluation image, counted from 0."""
        found = await self._read(lambda: self._pictures.sample(number))
        if found is None:
            raise ApiError(404, "there is no such sample", code="not_found")
        return found

    async def scene(self, number: int) -> dict[str, Any]:
        """``GET /page/scenes/{number}``: a scene that no model was trained on."""
        found = await self._read(lambda: self._pictures.scene(number))
        if found is None:
            raise ApiError(404, "this run has no scenes to draw", code="not_found")
        return found

    async def votes(self) -> dict[str, Any]:
        """``GET /page/votes``: the tally."""
        return {"tally": tally(await self._read(self._votes.read))}

    async def vote(self, request: Request) -> dict[str, Any]:
        """``POST /page/votes``: store a vote and return the tally."""
        content = await request.body()
        body = await self._read(lambda: self._parsed_vote(content))
        if not {body.winner, body.loser} <= set(self._names) or body.winner == body.loser:
            raise invalid(f"vote on two of the models {', '.join(self._names)}", "winner")
        if not await self._read(lambda: add_vote(self._run, Vote(**body.model_dump()))):
            raise ApiError(409, "this run stores no further votes", code="too_many_votes")
        return await self.votes()

    async def status(self) -> dict[str, Any]:
        """``GET /page/status``."""
        return await self._read(self._status)

    async def report(self) -> Response:
        """``GET /page/report``: a page of its own, which makes no requests."""
        content = await self._read(self._report)
        if content is None:
            raise ApiError(404, "the run has no report yet; `jsfree report` writes it", code="not_found")
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
        return Response(
            content, media_type="text/html; charset=utf-8", headers={**headers, "Content-Security-Policy": policy}
        )

    def _parsed_vote(self, content: bytes) -> VoteBody:
        """The vote in a body.

        Raises:
            ApiError: the body is not a JSON object within the limits, or a field is unknown, missing or invalid.
        """
        try:
            return VoteBody.model_validate(json_object(content, self._run.config.serve.max_prompt_chars))
        except ValidationError as error:
            raise validation_error(error) from None

    def _info(self) -> dict[str, Any]:
        config = self._run.config
        return {
            "run": self._run.folder.uri.rpartition("/")[2],
            "models": self._names,
            "prompt": config.prompt,
            "max_views": config.serve.max_views,
            "temperature": next((mode.temperature for mode in config.evaluate.modes.values() if mode.temperature), 1.0),
            "samples": self._pictures.samples,
            "first_sample": self._pictures.first_sample,
            "scenes": self._pictures.has_scenes,
            "score_name": config.score.score_name,
            "score_edges": self._pictures.score_edges(),
            "report": self._run.folder.exists(REPORT),
        }

    def _status(self) -> dict[str, Any]:
        status = read_status(self._run, pictures=True).as_json()
        for private in ("uri", "command", "driver", "error"):
            del status[private]
        for number, node in enumerate(status["nodes"], 1):
            node["host"] = f"node {number}"
        for failure in status["failures"]:
            del failure["example"]
        for stage in status["stages"]:
            stage["reused"] = bool(stage.pop("reused_from"))
        return status

    def _report(self) -> bytes | None:
        return self._run.folder.read(REPORT) if self._run.folder.exists(REPORT) else None

    async def _read(self, function: Callable[[], RESULT]) -> RESULT:
        """Call a function in a thread; raise errors of the run's folder without their paths."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        except StorageError as error:
            raise ApiError(
                503, "the run's folder cannot be read or written", code="storage", kind="server_error"
            ) from error
        except JsfreeError as error:
            raise ApiError(500, "the run's files cannot be used", code="internal_error", kind="server_error") from error
