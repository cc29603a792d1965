"""What Serve's proxies do with requests and with Serve's own errors; on a real Serve in test_app.py."""

import asyncio
import json

import pytest
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response

from serve.proxy import Proxy


def passed(response: Response, path: str = "/v1/models", **given: str) -> tuple[int, Headers, bytes, Headers]:
    """Status, headers and body of a response behind the proxy, and the request's headers that reach it."""
    sent: list[dict] = []
    seen: list[Headers] = []

    async def ray_serve(scope, receive, send) -> None:
        """Serve's proxy, which appends the request's identifier to the response."""
        seen.append(Headers(raw=list(scope["headers"])))

        async def send_with_id(message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("X-Request-ID", seen[0]["x-request-id"])
            await send(message)

        await response(scope, receive, send_with_id)

    async def collect(message) -> None:
        sent.append(message)

    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers}
    asyncio.run(Proxy(ray_serve)(scope, None, collect))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], Headers(raw=sent[0]["headers"]), body, seen[0] if seen else Headers({})


@pytest.mark.parametrize(
    ("status", "becomes", "retry"),
    [(500, 503, "true"), (503, 503, "true"), (408, 408, "false"), (429, 429, "true"), (404, 503, "true")],
)
def test_serves_plain_text_errors_become_json(status, becomes, retry):
    answered, headers, body, _ = passed(PlainTextResponse("Traceback: /usr/lib/secret", status))
    assert answered == becomes
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert headers["x-should-retry"] == retry
    assert headers["x-request-id"]
    assert int(headers["content-length"]) == len(body)
    assert b"secret" not in body


@pytest.mark.parametrize("response", [JSONResponse({"error": {}}, 500), PlainTextResponse("vllm:x 1", 200)])
def test_other_responses_are_passed_on_with_one_identifier(response):
    status, headers, body, seen = passed(response, x_request_id="mine")
    assert (status, body) == (response.status_code, response.body)
    assert headers.getlist("x-request-id") == ["mine"]
    assert seen["x-request-id"] == "mine"


def test_an_identifier_is_bounded_before_serve_echoes_it():
    _, headers, _, seen = passed(JSONResponse({}), x_request_id="x" * 5000)
    assert len(headers["x-request-id"]) == 32
    assert seen["x-request-id"] == headers["x-request-id"]


def test_headers_for_serve_itself_are_not_passed_on():
    _, _, _, seen = passed(JSONResponse({}), x_request_timeout_seconds="0", accept="*/*")
    assert "x-request-timeout-seconds" not in seen
    assert seen["accept"] == "*/*"


def test_long_headers_and_serves_own_routes_are_refused():
    assert passed(JSONResponse({}), user_agent="x" * 20_000)[0] == 431
    status, _, body, seen = passed(JSONResponse({"/": "jsfree"}), "/-/routes")
    assert (status, len(seen)) == (404, 0)
    assert json.loads(body)["error"]["code"] == "not_found"
    assert passed(PlainTextResponse("success"), "/-/healthz")[0] == 200
