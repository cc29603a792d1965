"""Fetching of images: which URLs, which addresses, and what a hostile server can do. The server is real, with TLS."""

import contextlib
import http.server
import socket
import ssl
import subprocess
import threading
import time

import pytest

from jsfree.config import Serve
from serve.http import remote_images, security
from serve.http.errors import ApiError
from serve.http.remote_images import ImageFetcher, RemoteUrl, is_public, parse_url
from tests.support import asking

HOST, ADDRESS = "images.example.org", "93.184.216.34"
LIMIT = 100_000


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Host"]))
        getattr(self, f"send_{self.path.strip('/').partition('?')[0]}", self.send_picture)()

    def _start(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send_picture(self) -> None:
        self._start(200, Content_Length=str(len(asking.PNG)))
        self.wfile.write(asking.PNG)

    def send_redirect(self) -> None:
        self._start(302, Location="https://169.254.169.254/latest")

    def send_announced(self) -> None:
        self._start(200, Content_Length=str(10**12))

    def send_endless(self) -> None:
        self._start(200)
        for _ in range(1000):
            self.wfile.write(bytes(10_000))

    def send_slow(self) -> None:
        self._start(200)
        for _ in range(100):
            self.wfile.write(b"x")
            time.sleep(0.1)

    def send_silent(self) -> None:
        time.sleep(3)

    def send_cut(self) -> None:
        self._start(200, Content_Length="5000")
        self.wfile.write(b"x")

    def send_missing(self) -> None:
        self._start(404)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of images with a certificate for HOST, and the TLS context that trusts it."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.asked = []
    server.trusted = ssl.create_default_context(cafile=str(certificate))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


class Network:
    """A network on which HOST has an address, where the test's server answers."""

    def __init__(self, server, *answers: list[str]) -> None:
        self.server = server
        self.answers = list(answers) or [[ADDRESS]]
        self.resolved: list[str] = []
        self.dialled: list[tuple[str, int]] = []

    def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        return self.answers[min(len(self.resolved), len(self.answers)) - 1]

    def connect(self, address: str, port: int, seconds: float) -> socket.socket:
        self.dialled.append((address, port))
        return socket.create_connection(self.server.server_address, seconds)

    def fetcher(self, seconds: float = 5, tls: ssl.SSLContext | None = None) -> ImageFetcher:
        return ImageFetcher(LIMIT, self.resolve, self.connect, tls or self.server.trusted, seconds)


def refused(fetcher: ImageFetcher, path: str, host: str = HOST) -> ApiError:
    with pytest.raises(ApiError) as error:
        fetcher.fetch(RemoteUrl(host, 443, path), "image")
    return error.value


def test_an_image_is_fetched_from_the_address_that_was_checked(server):
    """Only one question to the name server: a second answer, with an internal address, is never seen."""
    network = Network(server, [ADDRESS], ["127.0.0.1"])
    assert network.fetcher().fetch(RemoteUrl(HOST, 443, "/a.png?size=1"), "image") == asking.PNG
    assert network.resolved == [HOST]
    assert network.dialled == [(ADDRESS, 443)]
    assert server.asked[-1] == ("/a.png?size=1", HOST)


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        [ADDRESS, "192.168.0.1"],
        ["::1"],
        ["fd00::1"],
        ["fe80::1%eth0"],
        ["::ffff:93.184.216.34"],
        ["::ffff:10.0.0.1"],
        ["64:ff9b::a00:1"],
        ["64:ff9b:1::a00:1"],
        ["2002:a00:1::1"],
        ["::10.0.0.1"],
        ["0.0.0.0"],
        ["100.64.0.1"],
        ["224.0.0.1"],
        ["ff0e::1"],
        ["198.18.0.1"],
        ["255.255.255.255"],
        [],
    ],
)
def test_no_connection_is_opened_unless_all_addresses_are_public(server, addresses):
    network = Network(server, addresses)
    error = refused(network.fetcher(), "/a.png")
    assert (error.status, error.code) == (400, "image_not_available")
    assert network.dialled == []
    assert not any(address in error.message for address in addresses)


def test_public_addresses():
    assert is_public(ADDRESS)
    assert is_public("2606:2800:220:1:248:1893:25c8:1946")


@pytest.mark.parametrize("path", ["/redirect", "/announced", "/endless", "/cut", "/missing"])
def test_a_server_that_answers_otherwise_gives_a_generic_error(server, path):
    network = Network(server)
    started = time.monotonic()
    error = refused(network.fetcher(), path)
    assert error.message == "the image at this URL is not available, or too large"
    assert time.monotonic() - started < 5
    assert len(network.dialled) == 1  # no redirect is followed


@pytest.mark.parametrize("path", ["/slow", "/silent"])
def test_the_time_limit_holds_for_the_whole_fetch(server, path):
    started = time.monotonic()
    refused(Network(server).fetcher(seconds=0.5), path)
    assert time.monotonic() - started < 2.5


def test_the_certificate_is_verified(server):
    assert refused(Network(server).fetcher(tls=ssl.create_default_context()), "/a.png")
    assert refused(Network(server).fetcher(), "/a.png", "other.example.org")


def test_few_images_are_fetched_at_once(server):
    with contextlib.ExitStack() as stack:
        for _ in range(remote_images.FETCHES):
            stack.enter_context(remote_images._fetching)
        assert refused(Network(server).fetcher(), "/a.png").status == 429
    assert Network(server).fetcher().fetch(RemoteUrl(HOST, 443, "/"), "image")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://images.example.org/a.png", RemoteUrl(HOST, 443, "/a.png")),
        ("HTTPS://Images.Example.ORG/A.png?b=1&c=%20#d", RemoteUrl(HOST, 443, "/A.png?b=1&c=%20")),
        ("https://images.example.org", RemoteUrl(HOST, 443, "/")),
        ("https://images.example.org?a", RemoteUrl(HOST, 443, "/?a")),
        ("https://images.example.org:443/a", RemoteUrl(HOST, 443, "/a")),
        ("https://cdn.example.org:8443/a", RemoteUrl("cdn.example.org", 8443, "/a")),
        ("http://images.example.org/a", None),
        ("https://images.example.org:80/a", None),
        ("https://cdn.example.org/a", None),
        ("https://example.org/a", None),
        ("https://evil.images.example.org/a", None),
        ("https://images.example.org.evil.org/a", None),
        ("https://images.example.org./a", None),
        ("https://images.example.org@evil.org/a", None),
        ("https://user:pass@images.example.org/a", None),
        ("https://evil.org\\@images.example.org/a", None),
        ("https://images.example.org\\.evil.org/a", None),
        ("https://images.example.org/a\r\nHost: evil.org", None),
        ("https://images.example.org/a b", None),
        ("https://images.example.org/\u00e9", None),
        ("https://images.example.org\u3002evil.org/", None),
        (" https://images.example.org/a", None),
        ("https://images.example.org/" + "a" * 3000, None),
        ("https:images.example.org/a", None),
        ("https:///images.example.org/a", None),
        ("//images.example.org/a", None),
        ("file:///etc/passwd", None),
        ("https://127.0.0.1/a", None),
        ("https://[::1]/a", None),
        ("https://2130706433/a", None),
    ],
)
def test_only_urls_of_allowed_hosts_are_fetched(url, expected):
    assert parse_url(url, ["Images.example.org", "cdn.example.org:8443"]) == expected


def test_remote_urls_are_refused_by_default():
    for url in ("https://images.example.org/a.png", "http://169.254.169.254/latest"):
        with pytest.raises(ApiError) as error:
            security.checked_image(url, Serve(), "image")
        assert error.value.code == "invalid_image_url"
        assert "other URLs are not fetched" in error.value.message
