"""Real clients, each in a process of its own, of the real application over real engines on loopback.

LangChain, litellm and the npm package ``openai`` come from an environment of their own, which ``make check`` makes.
The official Python client is tested in ``tests/serve/test_app.py``, behind Ray Serve.
"""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from jsfree.config import Decoding
from jsfree.decoding import algorithm1
from jsfree.decoding.requests import Request
from jsfree.miniworld import world
from serve.app import served_models
from serve.http import routes as api
from serve.http.connections import BoundedProtocol
from serve.keys import Key, KeySource, sha256
from tests.support import ROOT
from tests.support.asking import chat, image, scene_url, text, user

pytestmark = pytest.mark.slow

ENVIRONMENT = ROOT / ".cache" / "clients"
SCRIPTS = Path(__file__).parent / "clients"
KEY = "key-of-the-clients-test"
SCENE = 2
TIMEOUT = 240
"""Seconds for one client; importing litellm alone takes seconds of CPU time."""


@dataclass(frozen=True)
class Asked:
    """The server's address, and what a greedy answer must be, computed by the literal Algorithm 1."""

    base_url: str
    text: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def run(self, *command: str) -> dict:
        """What a client's process prints."""
        request = {
            "base_url": self.base_url,
            "api_key": KEY,
            "model": "before",
            "endless": "after",
            "image": scene_url(SCENE),
            "text": world.PROMPT,
        }
        # Without proxies and without the developer's own keys; litellm would fetch a list of prices.
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment = {**kept, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=TIMEOUT, env=environment
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def asked(finished_run, engines) -> Iterator[Asked]:
    config = finished_run.run.config
    keys = KeySource((Key(name="clients", sha256=sha256(KEY), access="all"),))
    app = api.create_app(served_models(finished_run.run), engines, config.serve, config.prompt, keys)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=BoundedProtocol, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    captioner = finished_run.before
    picture = captioner.inputs(world.draw(world.scene("development", SCENE)))
    decoding = Decoding(temperature=0)
    caption = algorithm1.decode(captioner, Request("x", picture, world.PROMPT, 0.0, 0, decoding))
    prompt_tokens = len(captioner.prompt(world.PROMPT, picture))
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Asked(f"http://127.0.0.1:{port}/v1", caption.text, prompt_tokens, len(caption.token_ids))
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)


def python() -> str:
    program = ENVIRONMENT / "bin" / "python"
    if not program.is_file():
        pytest.skip("needs LangChain and litellm: run `make .cache/clients/.synced`")
    return str(program)


@pytest.fixture(scope="module")
def langchain(asked) -> dict:
    return asked.run(python(), str(SCRIPTS / "with_langchain.py"))


def test_langchain_gets_captions(asked, langchain):
    assert langchain["invoke"] == {"text": asked.text, "finish": "stop"}
    assert langchain["asynchronous"] == [asked.text] * 2
    assert langchain["batch"] == [asked.text] * 2
    assert langchain["system"]
    assert langchain["logprobs"] == asked.completion_tokens - 1  # all but the end token


def test_langchain_streams(asked, langchain):
    assert "".join(langchain["stream"]["parts"]) == asked.text
    assert sum(part != "" for part in langchain["stream"]["parts"]) > 3
    for usage in (langchain["usage"], langchain["stream"]["usage"]):
        assert (usage["input_tokens"], usage["output_tokens"]) == (asked.prompt_tokens, asked.completion_tokens)


def test_langchain_gets_clear_refusals_of_tools_and_structures(langchain):
    for name, param in (
        ("tools", "tools"),
        ("streamed tools", "tools"),
        ("function_calling", "tool_choice"),
        ("json_schema", "response_format"),
        ("json_mode", "response_format"),
    ):
        assert langchain[name] == refusal("BadRequestError", 400, param, "unsupported_parameter")
    assert langchain["wrong key"] == refusal("AuthenticationError", 401, None, "invalid_api_key")
    assert langchain["unknown model"] == refusal("NotFoundError", 404, "model", "model_not_found")


def refusal(kind: str, status: int, param: str | None, code: str) -> dict:
    return {"class": kind, "status": status, "param": param, "code": code}


def test_litellm_gets_captions_and_refusals(asked):
    got = asked.run(python(), str(SCRIPTS / "with_litellm.py"))
    usage = [asked.prompt_tokens, asked.completion_tokens]
    assert got["completion"] == {"text": asked.text, "finish": "stop"}
    assert got["usage"] == usage
    assert "".join(got["stream"]) == asked.text
    assert sum(part != "" for part in got["stream"]) > 3
    assert got["rebuilt"] == [asked.text, *usage]
    assert got["asynchronous"] == [asked.text] * 2
    for name, kind, status, message in (
        ("tools", "BadRequestError", 400, "'tools' is not supported here"),
        ("json", "BadRequestError", 400, "'response_format' is not supported here"),
        ("wrong key", "AuthenticationError", 401, "key"),
        ("unknown model", "NotFoundError", 404, "no such model"),
    ):
        assert (got[name]["class"], got[name]["status"]) == (kind, status)
        assert message in got[name]["message"]


def test_the_npm_client_gets_captions_streams_and_its_own_errors(asked):
    node = shutil.which("node")
    if node is None or not (ENVIRONMENT / "node_modules" / "openai").is_dir():
        pytest.skip("needs node and the npm package openai: install npm and run `make .cache/clients/.synced`")
    got = asked.run(node, str(SCRIPTS / "with_npm.mjs"), str(ENVIRONMENT))
    assert got["plain"] == {"text": asked.text, "finish": "stop", "usage": asked.usage}
    assert "".join(got["stream"]) == "".join(got["helper"]["deltas"]) == got["helper"]["text"] == asked.text
    assert len(got["helper"]["deltas"]) > 3
    assert got["helper"]["usage"] == asked.usage
    assert got["models"] == ["before", "m0", "after", "m1"]
    assert got["requestId"]
    for name, kind, status, param, code in (
        ("tools", "BadRequestError", 400, "tools", "unsupported_parameter"),
        ("streamedTools", "BadRequestError", 400, "tools", "unsupported_parameter"),
        ("json", "BadRequestError", 400, "response_format", "unsupported_parameter"),
        ("wrongKey", "AuthenticationError", 401, None, "invalid_api_key"),
        ("unknownModel", "NotFoundError", 404, "model", "model_not_found"),
    ):
        assert got[name] == refusal(kind, status, param, code) | {"isApiError": True}


def curl(asked: Asked, body: dict, *options: str) -> str:
    command = ["curl", "--silent", "--show-error", "--max-time", str(TIMEOUT), "--noproxy", "*", *options]
    command += ["--header", "Content-Type: application/json", "--data", "@-", f"{asked.base_url}/chat/completions"]
    done = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True)
    assert done.returncode in (0, 22), done.stderr  # 22: --fail-with-body
    return done.stdout


def test_curl_gets_a_caption_a_stream_and_an_error(asked):
    body = chat(messages=user(image(scene_url(SCENE)), text()), max_tokens=None)
    key = ("--header", f"Authorization: Bearer {KEY}")
    assert json.loads(curl(asked, body, *key))["choices"][0]["message"]["content"] == asked.text
    lines = curl(asked, {**body, "stream": True}, *key, "--no-buffer").splitlines()
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events.pop() == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == asked.text
    refused = curl(asked, body, "--fail-with-body", "--write-out", "%{http_code}")
    assert refused.endswith("401")
    assert json.loads(refused.removesuffix("401"))["error"]["code"] == "invalid_api_key"
