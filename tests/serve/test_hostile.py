"""Hundreds of hostile requests to the real application over real sockets, in a process with capped memory."""

import contextlib
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import ROOT, hostile
from tests.support.asking import chat
from tests.support.hostile import Hostile

log = logging.getLogger(__name__)
"""Shown with ``pytest --log-cli-level=INFO``."""
KEY = "hostile-tests-have-this-secret"
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
READY, NEVER = "ready", 599
CLIENTS, MANY_CLIENTS = 4, 16
SLOW = ("data url escapes", "image: 12 megapixels with alpha", "image: many chunks")
"""The requests of the corpus that take the most CPU time."""
LONGEST_ANSWER = 60
"""Seconds after which a request counts as one that is never answered; a busy machine needs several for the slowest."""
MAX_STALL, MAX_GROWTH = 0.5, 300 * 2**20
ORDINARY = 80
"""Ordinary requests before those of the corpus, beside which the other client's answers are measured too."""
ENVIRONMENT = {**os.environ, "JSFREE_API_KEY": KEY, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
HIDDEN = re.compile(r"Traceback|File \"|site-packages|/tmp|/work|/usr|/root|/home|\.py\b|0x[0-9a-f]{6,}|" + KEY)
"""What neither an answer nor a log may contain: paths, traces, addresses in memory, keys."""


@dataclass
class Server:
    """A server process with its port, the file of its output, and its access log."""

    process: subprocess.Popen
    port: int
    output: Path
    access_log: Path

    def memory(self, name: str) -> int:
        """``VmRSS`` (now) or ``VmHWM`` (maximum) in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024

    def post(self, path: str, body: bytes, headers=HEADERS) -> tuple[int, str]:
        """Status and text of an answer; 0 if the server closed the connection, ``NEVER`` if it did not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONGEST_ANSWER)
        with contextlib.closing(connection):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", path, body, headers)
            try:
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except ConnectionError:
                return 0, ""
            except TimeoutError:
                return NEVER, ""

    def get(self, path: str) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONGEST_ANSWER)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=HEADERS)
            return json.loads(connection.getresponse().read())


@pytest.fixture(scope="module")
def server(finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    printed, access_log = folder / "output.txt", folder / "access.jsonl"
    limits = ["serve.max_image_bytes=10000000", "serve.max_pixels=12500000", f"serve.access_log={access_log}"]
    command = [sys.executable, "-m", "tests.support.server", finished_run.run.folder.uri, str(port), *limits]
    with printed.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=ENVIRONMENT)
    server = Server(process, port, printed, access_log)
    try:
        until = time.monotonic() + 300
        while READY not in printed.read_text():
            assert process.poll() is None, printed.read_text()
            assert time.monotonic() < until, printed.read_text()
            time.sleep(0.2)
        yield server
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@dataclass
class Waits:
    """How long the answers of another client took."""

    times: dict[str, list[list[float]]] = field(default_factory=dict)

    def worst(self, kind: str) -> float:
        """Seconds of the slowest answer."""
        return max(seconds for seconds, _ in self.times[kind])

    def worst_cpu(self, kind: str) -> float:
        """The most CPU seconds that all threads of the server used during an answer.

        So long it takes at most on cores that no other process uses; on busy ones its seconds say little.
        """
        return max(used for _, used in self.times[kind])

    def figures(self) -> dict[str, dict[str, float]]:
        return {
            kind: {"answers": len(of), "worst_s": self.worst(kind), "worst_cpu_s": self.worst_cpu(kind)}
            for kind, of in self.times.items()
        }


@contextlib.contextmanager
def other_client(server: Server) -> Iterator[Waits]:
    """Another client, which asks for the models and for captions while the block runs."""
    command = [sys.executable, "-m", "tests.support.other_client", str(server.port), str(server.process.pid)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    waits = Waits()
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes) as process:
        try:
            process.stdin.write(json.dumps(chat(max_tokens=1)) + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "ready\n"
            yield waits
        finally:
            printed, _ = process.communicate(timeout=2 * LONGEST_ANSWER)
    waits.times.update(json.loads(printed))


def shown(text: str) -> str | None:
    """What an answer or a log shows but must not."""
    found = HIDDEN.search(text)
    return text[max(0, found.start() - 80) : found.end() + 80] if found else None


def test_hostile_requests_harm_nobody(server):
    """No failure, no hang, no other client that waits, no memory, nothing revealed; the server works as before."""
    requests = hostile.corpus()
    assert len(requests) >= 200
    caption = json.dumps(chat()).encode()
    before = server.post(hostile.CHAT, caption)
    assert before[0] == 200
    text_alone = chat(messages=[{"role": "user", "content": "Hello"}])
    assert server.post(hostile.CHAT, json.dumps(text_alone).encode())[0] == 200  # allocates the second engine's memory

    def send(request: Hostile) -> tuple[str, int, str, float]:
        started = time.monotonic()
        status, text = server.post(request.path, request.body(), {**HEADERS, **request.headers})
        return request.name, status, text, time.monotonic() - started

    ordinary = [Hostile(f"ordinary {index}", hostile.CHAT, hostile.constant(caption)) for index in range(ORDINARY)]
    with other_client(server) as beside_ordinary, ThreadPoolExecutor(CLIENTS) as clients:
        assert {answer[1] for answer in clients.map(send, ordinary)} == {200}
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # VmHWM starts anew
    memory = server.memory("VmRSS")
    server.get("/test/stall")
    with other_client(server) as beside_hostile, ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(send, requests))
    stall = server.get("/test/stall")
    growth = server.memory("VmHWM") - memory
    figures = {
        "requests": len(requests),
        "statuses": {status: sum(each[1] == status for each in answers) for status in sorted({a[1] for a in answers})},
        "stall": stall,
        "slowest": max((each[3], each[0]) for each in answers),
        "growth_mib": growth // 2**20,
        "other_client": {"ordinary": beside_ordinary.figures(), "hostile": beside_hostile.figures()},
    }
    log.info("%s", json.dumps(figures))
    assert [each[:3] for each in answers if each[1] >= 500] == []
    assert [(each[0], shown(each[2])) for each in answers if shown(each[2])] == []
    for kind in ("models", "captions"):
        assert beside_hostile.worst_cpu(kind) <= MAX_STALL
    assert stall["cpu_seconds"] <= MAX_STALL
    assert growth <= MAX_GROWTH
    after = server.post(hostile.CHAT, caption)
    assert json.loads(after[1])["choices"] == json.loads(before[1])["choices"]


def test_large_requests_do_not_delay_small_ones(server):
    """Clients that outnumber the server's threads send what takes longest to read; some find no memory for it."""
    slow = {each.name: each.body() for each in hostile.corpus() if each.name in SLOW}
    bodies = [slow[name] for _ in range(8) for name in SLOW]
    with other_client(server) as beside, ThreadPoolExecutor(MANY_CLIENTS) as clients:
        statuses = [status for status, _ in clients.map(lambda body: server.post(hostile.CHAT, body), bodies)]
    log.info("%s", json.dumps({"other_client": beside.figures(), "statuses": sorted(set(statuses))}))
    assert set(statuses) <= {200, 400, 429, 0}  # 0: the server closes a connection instead of reading all of its body
    for kind in ("models", "captions"):
        assert beside.worst_cpu(kind) <= MAX_STALL


def test_half_open_connections_do_not_stop_service(server):
    """256 unfinished headers and 256 unfinished bodies, all from one address."""
    body = json.dumps(chat(max_tokens=1)).encode()
    head = f"POST {hostile.CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
    opened = []
    for index in range(512):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=LONGEST_ANSWER)
        connection.sendall(head if index % 2 else head + b"Content-Length: %d\r\n\r\n" % len(body) + body[:10])
        opened.append(connection)
    try:
        started = time.monotonic()
        assert [server.post(hostile.CHAT, body)[0] for _ in range(5)] == [200] * 5
        assert server.get("/health") == {"status": "ok"}
        seconds = time.monotonic() - started
        log.info("%s", json.dumps({"five_captions_s": seconds}))
        assert seconds < 15
    finally:
        for connection in opened:
            connection.close()


def test_no_log_shows_what_it_must_not(server):
    """After the requests above; the access log has a line for each."""
    output, lines = server.output.read_text().partition(READY)[2], server.access_log.read_text()
    assert shown(output) is None
    assert shown(lines) is None
    assert len(lines.splitlines()) > 200
    for hidden in ("169.254", "etc/passwd", "127.0.0.1/", "evil.example", "X-Injected"):
        assert hidden not in lines + output
