"""Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}``, always.

A message is written for the client: it never holds the text of an exception from inside.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from serve.http.protocol import Refusal

log = logging.getLogger(__name__)
HTTP_TEXT = {404: "there is no such path", 405: "this path does not take the method"}


@dataclass(eq=False)
class ApiError(Exception):
    """A refused request; ``param`` names the field, ``code`` is stable."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    kind: str = "invalid_request_error"

    def response(self) -> JSONResponse:
        """The answer; a client is told to try again only where that may help."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        retry = self.status in (429, 503)
        headers = {"x-should-retry": "true" if retry else "false", **({"Retry-After": "1"} if retry else {})}
        return JSONResponse({"error": error}, self.status, headers)


def invalid(message: str, param: str | None = None, code: str = "invalid_value", status: int = 400) -> ApiError:
    """An error in the request."""
    return ApiError(status, message, param, code)


def overloaded(message: str) -> ApiError:
    """Too much is asked at once."""
    return ApiError(429, message, code="overloaded", kind="rate_limit_error")


def timed_out(seconds: float) -> ApiError:
    """The request took too long."""
    message = f"not answered within {seconds:g} s; ask for fewer tokens, or try again when there is less to do"
    return ApiError(408, message, code="timeout", kind="timeout_error")


def refused(refusal: Refusal, image_param: str, prompt_param: str) -> ApiError:
    """What a model's refusal is to the client."""
    if refusal.reason == "overloaded":
        return overloaded(refusal.message)
    if refusal.reason == "unavailable":
        return ApiError(503, refusal.message, code="unavailable", kind="server_error")
    if refusal.reason == "failed":
        return ApiError(500, refusal.message, code="internal_error", kind="server_error")
    return invalid(refusal.message, image_param if refusal.reason == "invalid_image" else prompt_param, refusal.reason)


def install(app: FastAPI) -> None:
    """Give every error of the application its shape."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        text = HTTP_TEXT.get(error.status_code, "the request is refused")
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        response = ApiError(error.status_code, f"{request.method}: {text}", code=code).response()
        response.headers.update(error.headers or {})
        return response

    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error)
        message = "the server failed on this request; its log has the reason"
        return ApiError(500, message, code="internal_error", kind="server_error").response()

    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, unforeseen)
