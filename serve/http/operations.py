"""Routes for those who run the server, and the middleware around all routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from jsfree.config import Serve
from serve.http import access_log
from serve.http.access_log import AccessLog
from serve.http.authentication import METRICS, Authentication
from serve.http.limits import Guard
from serve.http.metrics import CONTENT_TYPE, Metrics
from serve.keys import Keyring, KeySource

EXPOSED_HEADERS = (
    "x-request-id",
    "openai-processing-ms",
    "retry-after",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)


def add_routes(
    app: FastAPI, metrics: Metrics, description: dict[str, Any], health: Callable[[], Awaitable[Any]]
) -> None:
    """Add ``/health``, ``/ping``, ``/version``, ``/metrics`` and ``/openapi.json``.

    Args:
        description: the API in OpenAPI's format.
        health: raises an ``ApiError`` unless decoding makes progress.
    """

    async def healthy() -> Response:
        """Whether decoding makes progress in all models."""
        await health()
        return JSONResponse({"status": "ok"})

    async def show_version() -> Response:
        """The version of jsfree."""
        return JSONResponse({"version": version("jsfree")})

    async def show_metrics() -> Response:
        """The metrics of this process, in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    async def show_description() -> Response:
        """The API in OpenAPI's format."""
        return JSONResponse(description)

    for path, route in (
        ("/health", healthy),
        ("/ping", healthy),
        ("/version", show_version),
        (METRICS, show_metrics),
        ("/openapi.json", show_description),
    ):
        app.add_api_route(path, route, methods=["GET", "HEAD"], response_model=None)


def add_middleware(app: FastAPI, settings: Serve, metrics: Metrics, keys: KeySource) -> None:
    """Add the limits, the check of keys, CORS and the access log, from the inside out.

    Raises:
        ConfigError: the file of keys cannot be used.
        StorageError: the access log cannot be opened.
    """
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(
        Authentication, keyring=Keyring(keys), no_auth=settings.no_auth, origins=frozenset(settings.cors_origins)
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    logger = access_log.log if settings.access_log is None else access_log.to_file(settings.access_log)
    app.add_middleware(AccessLog, metrics=metrics, logger=logger)
