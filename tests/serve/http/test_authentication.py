"""Keys over HTTP: what is open, what is refused, rate limits; the access log and the metrics of the same requests."""

import json
import logging

import pytest
from starlette.testclient import TestClient

from jsfree.config import Serve
from serve import keys
from serve.http import routes
from serve.http.protocol import Answer, Choice, RunModel
from serve.http.rate_limits import RateLimits
from serve.keys import Key, KeySource
from tests.support.asking import chat, image, text, user

MODELS = [RunModel("before", "m0", "x"), RunModel("after", "m1", "y")]
SECRETS = {name: f"{name}-secret" for name in ("website", "limited", "prometheus", "operator")}
FIXED = tuple(
    Key(name=name, sha256=keys.sha256(secret), **extra)
    for (name, secret), extra in zip(
        SECRETS.items(),
        ({}, {"requests_per_minute": 2, "tokens_per_minute": 100}, {"access": "metrics"}, {"access": "all"}),
        strict=True,
    )
)
PATHS = (
    "/v1/models",
    "/v1/models/after",
    "/healthz",
    "/version",
    "/metrics",
    "/openapi.json",
    "/nothing",
    "/page/info",
)


class Model:
    """A model that gives the same caption to everyone."""

    async def caption(self, question):
        return Answer((Choice("A red square.", "stop", 4),), 29)

    async def healthy(self):
        return True

    async def context_length(self):
        return 512


KEYED = KeySource(FIXED)


def served(source: KeySource = KEYED, client: tuple[str, int] = ("203.0.113.5", 4000), **settings):
    app = routes.create_app(MODELS, {"before": Model(), "after": Model()}, Serve(**settings), "Describe.", source)
    return TestClient(app, "http://127.0.0.1:8000", client=client)


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


def ask(client, name: str | None = None):
    return client.post("/v1/chat/completions", json=chat(), headers=bearer(name) if name else {})


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer ", "Bearer wrong", "Basic d2Vic2l0ZQ==", "website-secret"])
def test_every_path_but_those_of_health_and_the_pages_wants_a_key(path, header):
    client = served()
    answer = client.get(path, headers={"Authorization": header} if header else {})
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-should-retry"] == "false"
    assert "secret" not in answer.text
    for open_path in ("/health", "/ping"):
        assert client.get(open_path).json() == {"status": "ok"}


def test_a_body_without_a_key_is_refused_before_its_length():
    answer = served().post("/compare", content=b"{" * 10**8)  # larger than any body may be
    assert answer.status_code == 401
    assert answer.headers["connection"] == "close"


def test_a_valid_key_is_answered_and_a_restricted_one_only_where_it_may():
    client = served()
    assert ask(client, "website").status_code == 200
    assert ask(client, "operator").status_code == 200
    assert client.get("/metrics", headers=bearer("operator")).status_code == 200
    assert client.get("/metrics", headers=bearer("prometheus")).status_code == 200
    for name, path in (("website", "/metrics"), ("prometheus", "/v1/models")):
        refused = client.get(path, headers=bearer(name))
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "insufficient_permissions"
    lower = {"authorization": f"bearer  {SECRETS['website']} "}
    assert client.get("/v1/models", headers=lower).status_code == 200


def test_a_server_without_keys_answers_its_own_machine_only():
    assert served(KeySource(), ("127.0.0.1", 1)).get("/v1/models").status_code == 200
    assert served(KeySource(), ("::1", 1)).get("/v1/models").status_code == 200
    for address in ("203.0.113.5", "10.0.0.7", "::ffff:10.0.0.7", "fe80::1"):
        refused = served(KeySource(), (address, 1)).get("/v1/models")
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "no_keys"
        assert served(KeySource(), (address, 1), no_auth=True).get("/v1/models").status_code == 200


LOOPBACK = ("127.0.0.1", 1)
CROSS_SITE = [
    ({"Host": "evil.example:8000"}, "host_not_allowed"),
    ({"Host": "192.168.1.4:8000"}, "host_not_allowed"),
    ({"Host": "localhost.evil.example"}, "host_not_allowed"),
    ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}, "host_not_allowed"),  # DNS rebinding
    ({"Host": "["}, "host_not_allowed"),
    ({"Origin": "https://evil.example"}, "origin_not_allowed"),
    ({"Origin": "http://127.0.0.1:3000"}, "origin_not_allowed"),
    ({"Origin": "http://127.0.0.1:8000.evil.example"}, "origin_not_allowed"),
    ({"Origin": "null"}, "origin_not_allowed"),
]


@pytest.mark.parametrize(("headers", "code"), CROSS_SITE)
def test_a_server_without_keys_refuses_other_sites_in_a_browser_on_its_machine(headers, code):
    client = served(KeySource(), LOOPBACK)
    for answer in (
        client.get("/page/status", headers=headers),
        client.post("/page/votes", content="{}", headers=headers | {"Content-Type": "text/plain"}),
    ):
        assert answer.status_code == 403
        assert (answer.json()["error"]["type"], answer.json()["error"]["code"]) == ("permission_error", code)
    assert client.get("/health", headers=headers).status_code == 200
    assert served(KeySource(), LOOPBACK, no_auth=True).get("/v1/models", headers=headers).status_code == 200
    assert served(client=LOOPBACK).get("/v1/models", headers=headers | bearer("website")).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.1.2.3"])
def test_a_server_without_keys_answers_its_own_pages_and_the_sites_that_a_setting_names(host):
    own = {"Host": host, "Origin": f"http://{host}"}
    assert served(KeySource(), LOOPBACK).get("/v1/models", headers=own).status_code == 200
    for origins in (["https://example.org"], ["*"]):
        client = served(KeySource(), LOOPBACK, cors_origins=origins)
        named = {"Host": host, "Origin": "https://example.org"}
        assert client.get("/v1/models", headers=named).status_code == 200


def test_rate_limits_are_reported_and_enforced():
    client = served()
    first = ask(client, "limited")
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-limit-tokens"] == "100"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert ask(client, "limited").status_code == 200
    refused = ask(client, "limited")
    assert refused.status_code == 429
    assert refused.json()["error"] | {"message": ""} == {
        "message": "",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-should-retry"] == "true"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert ask(client, "website").status_code == 200  # other keys are not affected
    assert "x-ratelimit-limit-requests" not in ask(client, "website").headers


def test_budgets_refill_within_a_minute():
    now = 0.0
    limits = RateLimits(lambda: now)
    key = Key(name="a", sha256="0" * 64, requests_per_minute=6, tokens_per_minute=600)

    def admitted() -> bool:
        try:
            limits.admit(key)
        except routes.ApiError:
            return False
        return True

    assert [admitted() for _ in range(8)] == [True] * 6 + [False] * 2
    now += 10
    assert [admitted() for _ in range(2)] == [True, False]
    now += 600
    limits.charge(key, 900)  # 300 more than there were: half a minute until the budget is positive
    now += 29
    assert not admitted()
    now += 2
    assert admitted()


def test_the_access_log_has_no_contents(caplog, tmp_path):
    file = tmp_path / "access.jsonl"
    client = served(access_log=str(file))
    ask(client, "website")
    client.get("/v1/models/SECRET-PATH?key=SECRET-QUERY", headers=bearer("website"))
    client.get("/SECRET-PATH", headers=bearer("website") | {"x-request-id": "x" * 5000})
    client.get("/v1/models", headers={"x-request-id": "trace-7"})
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["route"], line["status"], line["key"]) for line in lines] == [
        ("/v1/chat/completions", 200, "website"),
        ("/v1/models/{model}", 404, "website"),
        ("unknown", 404, "website"),
        ("unknown", 401, None),
    ]
    assert lines[3]["request_id"] == "trace-7"
    assert len(lines[2]["request_id"]) == 32
    assert lines[0]["ms"] >= 0
    for hidden in ("SECRET", "website-secret", "203.0.113", "base64", "Describe"):
        assert hidden not in file.read_text() + caplog.text


def test_request_ids_are_echoed_if_they_are_short_and_plain():
    client = served()
    for given, echoed in (("abc-1.2_3:4", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("é", False)):
        answer = client.get("/health", headers={"x-request-id": given.encode()})
        assert (answer.headers["x-request-id"] == given) == echoed
        assert 0 < len(answer.headers["x-request-id"]) <= 128
        assert answer.headers.get_list("x-request-id", split_commas=True) == [answer.headers["x-request-id"]]
        assert int(answer.headers["openai-processing-ms"]) >= 0


def test_other_sites_are_answered_by_setting_only():
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-lang"
    assert served().options("/v1/chat/completions", headers=asked).status_code == 401
    client = served(cors_origins=["https://example.org"])
    preflight = client.options("/v1/chat/completions", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://example.org"
    assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
    refused = client.get("/v1/models", headers={"Origin": "https://example.org"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://example.org"  # so that pages can read the error
    other = client.get("/health", headers={"Origin": "https://other.org"})
    assert "access-control-allow-origin" not in other.headers


def test_metrics_count_requests_by_route():
    client = served()
    ask(client, "website")
    for _ in range(3):
        client.get("/unknown/path", headers=bearer("website"))
    text = client.get("/metrics", headers=bearer("prometheus")).text
    assert 'jsfree:http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'jsfree:http_requests_total{method="GET",route="unknown",status="404"} 3.0' in text
    assert "/unknown/path" not in text


def test_version_and_head_requests():
    import jsfree

    client = served()
    assert client.get("/version", headers=bearer("website")).json() == {"version": jsfree.__version__}
    for path in ("/health", "/ping"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


class Failing(Model):
    """A model with a defect."""

    async def caption(self, question):
        raise RuntimeError("a defect")


def test_the_traceback_of_a_failure_is_in_the_log_alone_and_has_no_contents(caplog):
    caplog.set_level(logging.DEBUG)
    models = {"before": Failing(), "after": Failing()}
    app = routes.create_app(MODELS, models, Serve(), "Describe.", KEYED)
    body = chat(messages=user(image(), text("my-private-text")))
    answer = TestClient(app, raise_server_exceptions=False).post(
        "/v1/chat/completions", json=body, headers=bearer("website")
    )
    assert answer.status_code == 500
    assert "defect" not in answer.text
    assert "RuntimeError: a defect" in caplog.text
    for hidden in ("my-private-text", "base64,", "website-secret"):
        assert hidden not in caplog.text


def test_the_keys_are_in_no_log(caplog):
    caplog.set_level(logging.DEBUG)
    client = served()
    ask(client, "website")
    client.get("/v1/models", headers={"Authorization": "Bearer wrong-secret"})
    assert "secret" not in caplog.text
