"""Errors in OpenAI's format: ``{"error": {"message", "type", "param", "code"}}``.

Messages are written for clients and never contain the text of an internal exception.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from serve.http.protocol import Refusal

log = logging.getLogger(__name__)
HTTP_TEXT = {404: "no such path", 405: "the path does not support this method"}


@dataclass(eq=False)
class ApiError(Exception):
    """A refused request.

    Attributes:
        param: the field that is wrong, if it is one.
        code: a stable identifier of the error.
        kind: OpenAI's type of the error.
        retry_after_s: seconds after which the request may succeed, if it may at all.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    kind: str = "invalid_request_error"
    retry_after_s: int = 1

    def content(self) -> dict[str, dict[str, str | None]]:
        """The body, in OpenAI's format."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The HTTP response; its headers ask for a retry only if that can succeed."""
        retry = self.status in (429, 503)
        headers = {"x-should-retry": "true" if retry else "false"}
        if retry:
            headers["Retry-After"] = str(self.retry_after_s)
        return JSONResponse(self.content(), self.status, headers)


def invalid(message: str, param: str | None = None, code: str = "invalid_value", status: int = 400) -> ApiError:
    """An invalid request."""
    return ApiError(status, message, param, code)


def overloaded(message: str) -> ApiError:
    """Too many requests at once."""
    return ApiError(429, message, code="overloaded", kind="rate_limit_error")


def timed_out(seconds: float) -> ApiError:
    """The request took too long."""
    message = f"not finished within {seconds:g} s; request fewer tokens"
    return ApiError(408, message, code="timeout", kind="timeout_error")


def internal() -> ApiError:
    """The server failed."""
    message = "the server failed on this request; see its log"
    return ApiError(500, message, code="internal_error", kind="server_error")


def refused(refusal: Refusal, image_param: str, prompt_param: str) -> ApiError:
    """The error for a model's refusal."""
    if refusal.reason == "overloaded":
        return overloaded(refusal.message)
    if refusal.reason == "unavailable":
        return ApiError(503, refusal.message, code="unavailable", kind="server_error")
    if refusal.reason == "failed":
        return ApiError(500, refusal.message, code="internal_error", kind="server_error")
    param = refusal.field or (image_param if refusal.reason == "invalid_image" else prompt_param)
    return invalid(refusal.message, param, refusal.reason)


def install(app: FastAPI) -> None:
    """Register handlers, so that every error of the application has this format."""

    async def api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        text = HTTP_TEXT.get(error.status_code, "the request was refused")
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        response = ApiError(error.status_code, f"{request.method}: {text}", code=code).response()
        response.headers.update(error.headers or {})
        return response

    async def invalid_parameter(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"][1:])  # without "path" or "query"
        return invalid(f"{name!r}: {problem['msg']}", name).response()

    async def internal_error(_: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error)
        return internal().response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid_parameter)
    app.add_exception_handler(Exception, internal_error)
