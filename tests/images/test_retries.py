"""Classification and retries of failed reads, over a real HTTP server and other stores."""

import errno
import http.server
import io
import socket
import threading
from collections import Counter

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from jsfree.config import Source
from jsfree.errors import RowError
from jsfree.images import retries
from jsfree.images.decoding import load_image
from jsfree.images.ranges import Part

LIMITS = Source(min_side=4, max_pixels=10_000, max_bytes=100_000)


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 12), "teal").save(file, "PNG")
    return file.getvalue()


class Answers(http.server.BaseHTTPRequestHandler):
    """Responds to ``/<status>/<name>`` with the status for the first ``server.failures`` times, then with an image.

    ``reset`` instead of a status closes the connection without a response, ``cut`` within the body. Ranges are ignored
    under ``/whole``.
    """

    def do_GET(self):
        self.server.asked[self.command] += 1
        first = self.path.split("/")[1]
        if first != "whole" and self.server.failures > 0:
            self.server.failures -= 1
            if first == "reset":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if first == "cut":
                self.close_connection = True
                self.send_response(200)
                self.send_header("Content-Length", str(len(self.server.content)))
                self.end_headers()
                self.wfile.write(self.server.content[:20] if self.command == "GET" else b"")
                return
            self.send_response(int(first))
            self.send_header("Retry-After", self.server.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.server.content
        asked = self.headers.get("Range") if first != "whole" else None
        start, end = (int(side) for side in asked.removeprefix("bytes=").split("-")) if asked else (0, len(content) - 1)
        part = content[start : end + 1]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        try:
            for position in range(0, len(part) if self.command == "GET" else 0, 2**20):
                self.wfile.write(part[position : position + 2**20])
                self.server.sent += 2**20
        except OSError:
            self.close_connection = True  # the client closed the connection

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(retries, "DELAYS", (0.01, 0.02))
    monkeypatch.setattr(retries, "_failing", set())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        running.content, running.asked, running.failures, running.retry_after = picture(), Counter(), 10**9, "0"
        running.sent = 0
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def image_at(uri: str) -> dict:
    return {"id": "some image", "uri": uri, "bytes": None, "sha256": None}


def both(server, first: str) -> list[str]:
    """Returns the addresses of a whole file and of a part of a file."""
    uri = f"http://127.0.0.1:{server.server_port}/{first}/a.png"
    return [uri, Part(uri, 0, len(server.content)).uri]


def failure(uri: str) -> RowError:
    with pytest.raises(RowError, match="some image") as caught:
        load_image(image_at(uri), LIMITS)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("status", [404, 410])
def test_not_found_and_gone_make_an_image_missing(server, status):
    for uri in both(server, str(status)):
        assert failure(uri).kind == "missing"
    assert server.asked["GET"] == 2  # one request each, without a retry


@pytest.mark.parametrize(
    ("status", "words", "remedy"),
    [
        (400, "HTTP 400 Bad Request", "check the path"),
        (401, "HTTP 401 Unauthorized", "check your credentials"),
        (403, "HTTP 403 Forbidden", "check your credentials"),
        (418, "HTTP 418", "check the path"),
        (429, "HTTP 429 Too Many Requests", "fewer workers"),
        (500, "HTTP 500 Internal Server Error", "try again"),
        (503, "HTTP 503 Service Unavailable", "try again"),
        (599, "HTTP 599", "check the path"),
    ],
)
def test_other_statuses_make_an_image_unreadable_with_a_remedy_in_the_error(server, status, words, remedy):
    for uri in both(server, str(status)):
        error = failure(uri)
        assert (error.kind, words in str(error), remedy in str(error)) == ("unreadable", True, True)


@pytest.mark.parametrize("first", ["408", "429", "500", "502", "503", "504", "reset", "cut"])
def test_transient_failures_are_retried(server, first):
    for uri, failures in zip(both(server, first), (4, 2), strict=True):  # a whole file takes a HEAD and a GET request
        server.failures = failures
        assert load_image(image_at(uri), LIMITS)[0].size == (16, 12)
        assert server.failures == 0


@pytest.mark.parametrize("status", [401, 403, 404])
def test_permanent_failures_are_not_retried(server, status):
    server.failures = 1
    failure(both(server, str(status))[1])
    assert server.asked["GET"] == 1


def test_retries_are_limited_and_skipped_while_a_host_is_down(server):
    uri = both(server, "503")[1]
    failure(uri)
    assert server.asked["GET"] == 1 + len(retries.DELAYS)
    failure(uri)
    assert server.asked["GET"] == 2 + len(retries.DELAYS)
    server.failures = 0
    load_image(image_at(uri), LIMITS)  # the host is available again, so retries resume
    server.failures, before = 2, server.asked["GET"]
    load_image(image_at(uri), LIMITS)
    assert server.asked["GET"] == before + 3


def test_retry_after_is_respected_up_to_a_limit(server, monkeypatch):
    waits = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    for asked, expected in (("3", [3.0]), ("86400", [retries.MAX_DELAY])):
        server.failures, server.retry_after = 1, asked
        load_image(image_at(both(server, "429")[1]), LIMITS)
        assert [waits.pop() for _ in expected] == expected
    server.failures, server.retry_after = 1, "Wed, 21 Oct 2099 07:28:00 GMT"
    load_image(image_at(both(server, "429")[1]), LIMITS)
    assert 0 < waits.pop() <= retries.DELAYS[0]


def test_closed_ports_and_unknown_hosts_make_an_image_unreadable(server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/a.png"
    for uri in (closed, f"{closed}#offset=0&length=5", "http://no.such.host.invalid/a.png"):
        assert failure(uri).kind == "unreadable"


def test_a_response_that_ignores_the_range_is_not_downloaded(server):
    """The server sends the whole file instead of the requested part, which may not fit into memory."""
    server.content = bytes(200 * 2**20)
    uri = f"http://127.0.0.1:{server.server_port}/whole/a.tar"
    error = failure(Part(uri, 512, 1000).uri)
    assert (error.kind, "range" in str(error)) == ("unreadable", True)
    assert server.sent < 50 * 2**20


class ResponseError(Exception):
    """Stores the status of a response like botocore's ClientError."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = {"Error": {"Code": "?"}, "ResponseMetadata": {"HTTPStatusCode": status}}


class Store(MemoryFileSystem):
    """Fails like s3fs: with an ``OSError`` raised from the client's own error."""

    protocol = "failing"
    raised: Exception
    calls = 0

    def info(self, path, **_):
        type(self).calls += 1
        raise self.raised


@pytest.mark.parametrize(
    ("raised", "cause", "kind", "attempts"),
    [
        (FileNotFoundError("key"), ResponseError(404), "missing", 1),
        (FileNotFoundError("key"), None, "missing", 1),
        (FileNotFoundError("key"), KeyError("key"), "missing", 1),
        (FileNotFoundError("key"), ResponseError(403), "unreadable", 1),
        (FileNotFoundError("key"), ValueError("no address"), "unreadable", 1),
        (PermissionError("denied"), ResponseError(403), "unreadable", 1),
        (OSError(errno.EBUSY, "slow down"), ResponseError(503), "unreadable", 3),
        (OSError(errno.EIO, "internal error"), ResponseError(500), "unreadable", 3),
        (OSError(errno.EIO, "broken disk"), None, "unreadable", 1),
        (TimeoutError(), None, "unreadable", 3),
        (ConnectionResetError(errno.ECONNRESET, "reset"), None, "unreadable", 3),
        (ValueError("no credentials"), None, "unreadable", 1),
    ],
)
def test_errors_of_other_stores_are_classified_like_http_statuses(monkeypatch, raised, cause, kind, attempts):
    monkeypatch.setattr(retries, "DELAYS", (0, 0))
    monkeypatch.setattr(retries, "_failing", set())
    monkeypatch.setattr(Store, "calls", 0)
    raised.__cause__ = cause
    monkeypatch.setattr(Store, "raised", raised, raising=False)
    fsspec.register_implementation("failing", Store, clobber=True)
    assert failure("failing://bucket/a.png").kind == kind
    assert Store.calls == attempts
