"""`jsfree serve` on a real Ray Serve, with requests of the official client, of curl, and invalid ones."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from jsfree.config import Decoding
from jsfree.decoding import algorithm1
from jsfree.decoding.requests import Request
from jsfree.miniworld import world
from tests.support import ROOT, asking
from tests.support.asking import chat, image, scene_url, text, user

pytestmark = pytest.mark.slow


class Server:
    """A `jsfree serve` process: its address, and what it printed."""

    def __init__(self, run: str, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = log
        self.address = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "ray_jobs.cli", "serve", "--run", run, "--port", str(self.port)]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )

    def wait_until_ready(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while "Ctrl-C" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.2)

    def get(self, path: str, content: bytes | None = None) -> tuple[int, dict, dict]:
        """Status, headers and body of a raw request."""
        request = urllib.request.Request(self.address + path, data=content)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), json.loads(error.read())


@pytest.fixture(scope="module")
def server(finished_run, tmp_path_factory):
    server = Server(finished_run.run.folder.uri, tmp_path_factory.mktemp("serve") / "log.txt")
    try:
        server.wait_until_ready(240)
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="unused", max_retries=0) as client:
        yield client


def expected(captioner, index: int) -> str:
    picture = world.draw(world.scene("development", index))
    request = Request("x", captioner.inputs(picture), world.PROMPT, 0.0, 0, Decoding(temperature=0))
    return algorithm1.decode(captioner, request).text


def test_the_official_client_lists_models_and_gets_captions(client, finished_run):
    assert [model.id for model in client.models.list()] == ["before", "m0", "after", "m1"]
    assert client.models.retrieve("after").root == "m1"
    for model, captioner in (("before", finished_run.before), ("after", finished_run.after)):
        messages = user(text(), image(scene_url(2)))
        completion = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=96)
        assert completion.choices[0].message.content == expected(captioner, 2)
        assert completion.choices[0].finish_reason == ("stop" if model == "before" else "length")
        assert completion.usage.total_tokens > completion.usage.prompt_tokens > 0


def test_the_official_client_understands_the_errors(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**chat(model="gpt-4o"))
    assert missing.value.code == "model_not_found"
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as tools:
            client.chat.completions.create(**chat(tools=[{"type": "function"}], stream=stream))
        assert (tools.value.param, tools.value.code) == ("tools", "unsupported_parameter")


STREAMED = {"model": "after", "temperature": 1, "seed": 4, "max_tokens": 80, "n": 2}


def test_the_official_clients_stream_what_they_get_without(client, server):
    whole = [choice.message.content for choice in client.chat.completions.create(**chat(**STREAMED)).choices]

    def joined(chunks) -> list[str]:
        spoken = ["", ""]
        for chunk in chunks:
            for choice in chunk.choices:
                spoken[choice.index] += choice.delta.content or ""
        return spoken

    chunks = list(client.chat.completions.create(**chat(**STREAMED), stream=True))
    assert joined(chunks) == whole
    ending = chat(model="before", max_tokens=96)
    with client.chat.completions.stream(**ending, stream_options={"include_usage": True}) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    expected = client.chat.completions.create(**ending)
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == expected.choices[0].message.content
    assert final.usage == expected.usage

    async def asynchronous() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="unused", max_retries=0) as other:
            stream = await other.chat.completions.create(**chat(**STREAMED), stream=True)
            return joined([chunk async for chunk in stream])

    assert asyncio.run(asynchronous()) == whole


def test_the_client_gets_log_probabilities(client):
    answer = client.chat.completions.create(**chat(logprobs=True, top_logprobs=3))
    content = answer.choices[0].logprobs.content
    assert "".join(each.token for each in content).strip() == answer.choices[0].message.content
    assert all(len(each.top_logprobs) == 3 and each.logprob == each.top_logprobs[0].logprob for each in content)


def test_a_comparison_scores_sentences(server):
    status, _, compared = server.get("/v1/compare", json.dumps({"image": scene_url(2)}).encode())
    assert status == 200
    for caption in compared["captions"]:
        assert -1 < caption["score"] < 1
        assert all(-1 < sentence["score"] < 1 for sentence in caption["sentences"])


def test_eight_concurrent_clients_get_the_same_captions_as_alone(client):
    def ask(index: int) -> str:
        body = chat(scene_url(index), temperature=1, seed=index, max_tokens=60)
        return client.chat.completions.create(**body).choices[0].message.content

    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(ask, range(8)))
    assert len(set(together)) == 8
    assert together == [ask(index) for index in range(8)]


def test_the_printed_command_works_when_copied(server):
    command = re.search(r"^ +(.*curl.*)$", server.log.read_text(), re.MULTILINE).group(1)
    assert "example.png" in command
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    compared = json.loads(done.stdout)
    assert compared["before"]["model"] == "m0"
    assert compared["after"]["model"] == "m1"
    assert compared["before"]["text"] != compared["after"]["text"]


@pytest.mark.parametrize(
    ("path", "content", "status", "code"),
    [
        ("/v1/chat/completions", b"{", 400, "invalid_json"),
        ("/v1/chat/completions", json.dumps(chat("https://example.org/a.png")).encode(), 400, "invalid_image_url"),
        ("/v1/chat/completions", json.dumps(chat(model="\ud83d")).encode(), 400, "invalid_unicode"),
        ("/v1/chat/completions", json.dumps(chat(asking.picture_url(600, 600))).encode(), 400, "invalid_image"),
        ("/v1/chat/completions", None, 405, "method_not_allowed"),
        ("/v1/embeddings", None, 404, "not_found"),
        ("/compare", bytes(1_000_000), 413, "too_large"),
    ],
)
def test_errors_keep_their_format_behind_ray_serve(server, path, content, status, code):
    answered, headers, body = server.get(path, content)
    assert answered == status
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code
    assert headers["x-should-retry"] == "false"


def test_a_head_request_is_answered_without_a_body(server):
    for path, status in (("/healthz", 200), ("/v1/models", 200), ("/v1/models/after", 200), ("/v1/models/x", 404)):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (status, b"")
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_disconnect_free_their_slots(server, client, stream):
    """Four requests fill a replica and their clients disconnect: a fifth is answered before those could have ended."""

    def answered(**fields) -> bool:
        try:
            client.chat.completions.create(**chat(model="after", temperature=1, **fields))
        except openai.RateLimitError:
            return False
        return True

    started = time.monotonic()
    assert answered(n=8, max_tokens=400)
    one = time.monotonic() - started
    body = json.dumps(chat(model="after", temperature=1, n=8, max_tokens=400, stream=stream)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
    for each in clients:
        each.sendall(head + body)
    time.sleep(one / 4)
    assert not answered(max_tokens=1)
    started = time.monotonic()
    for each in clients:
        each.close()
    while not answered(max_tokens=1) and time.monotonic() - started < 4 * one:
        time.sleep(0.05)
    assert time.monotonic() - started < 2 * one
    assert server.get("/healthz")[2] == {"status": "ok", "models": {"before": "m0", "after": "m1"}}


def test_serves_proxy_limits_headers_and_passes_identifiers_on(server):
    """The middleware and the protocol of ``serve.proxy`` are in use."""

    def sent(content: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(content)
            return connection.recv(100_000)

    assert sent(b"GET /health HTTP/1.1\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 431 ")
    assert sent(b"GET /-/routes HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404 ")
    short = sent(b"GET /health HTTP/1.1\r\nX-Request-ID: mine\r\n\r\n").lower()
    assert short.count(b"x-request-id: mine\r\n") == short.count(b"x-request-id") == 1
    long = sent(b"GET /health HTTP/1.1\r\nX-Request-ID: " + b"x" * 5000 + b"\r\n\r\n").lower()
    assert b"x" * 200 not in long


def test_metrics_of_a_real_server(server, client):
    client.chat.completions.create(**chat(scene_url(3)))
    with urllib.request.urlopen(f"{server.address}/metrics", timeout=60) as answer:
        metrics = answer.read().decode()
    assert 'vllm:request_success_total{finished_reason="length",model_name="before"}' in metrics
    assert 'jsfree:http_requests_total{method="POST",route="/v1/chat/completions",status="200"}' in metrics
    for name in ("request_queue_time_seconds", "time_to_first_token_seconds"):
        assert f'vllm:{name}_count{{model_name="before"}}' in metrics


def test_the_port_listens_only_on_loopback(server):
    done = subprocess.run(["ss", "-ltnH", f"sport = :{server.port}"], capture_output=True, text=True)
    addresses = {line.split()[3] for line in done.stdout.splitlines()}
    assert addresses == {f"127.0.0.1:{server.port}"}


def test_sigterm_stops_the_server_cleanly(server):
    """Runs last, because it stops the server of the other tests."""
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log.read_text()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port), timeout=2)
