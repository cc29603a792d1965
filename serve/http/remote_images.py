"""Fetches images by ``https://`` URL from the hosts that ``serve.allowed_image_hosts`` names.

A server that fetches what clients name can be made to ask services of its own network (server-side request forgery).
Here, the host must be one of the list, exactly; all its addresses must be public; and the connection goes to an address
that was checked, so a second answer of the name server cannot redirect it. Redirects are not followed, the proxy
variables of the environment are ignored, and the client learns only that an image is not available.
"""

from __future__ import annotations

import http.client
import ipaddress
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from serve.http.errors import ApiError, invalid, overloaded

log = logging.getLogger(__name__)
FETCH_SECONDS = 10.0
"""Seconds for a whole fetch, after the name server has answered."""
FETCHES = 4
"""Images that are fetched at once; further requests get status 429."""
MAX_URL = 2048
"""Maximum length of a URL in characters."""
CHUNK = 65_536

_URL = re.compile(
    r"https://(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::(?P<port>[0-9]{1,5}))?(?P<path>[/?][!-\[\]-~]*)?",
    re.IGNORECASE,
)
"""An absolute URL of printable ASCII without user, backslash, or characters that parsers disagree on."""
_EMBEDDING = tuple(
    ipaddress.IPv6Network(network) for network in ("::/96", "::ffff:0:0/96", "64:ff9b::/32", "2001::/32", "2002::/16")
)
"""IPv6 networks whose addresses contain an IPv4 address, which could be a private one."""
_fetching = threading.BoundedSemaphore(FETCHES)

Resolve = Callable[[str, int], list[str]]
Connect = Callable[[str, int, float], socket.socket]


class RemoteUrl(NamedTuple):
    """An accepted URL; ``path`` includes the query."""

    host: str
    port: int
    path: str


class NotAvailableError(Exception):
    """An image cannot be fetched; the message is for the server's log."""


def parse_url(url: str, allowed_hosts: list[str]) -> RemoteUrl | None:
    """Parse a URL; None if it may not be fetched.

    Args:
        allowed_hosts: host names, or ``host:port`` for ports other than 443.
    """
    match = _URL.fullmatch(url.partition("#")[0]) if len(url) <= MAX_URL else None
    if match is None:
        return None
    host, port = match["host"].lower(), int(match["port"] or 443)
    named = {allowed.lower() for allowed in allowed_hosts}
    if f"{host}:{port}" not in named and not (host in named and port == 443):
        return None
    path = match["path"] or "/"
    return RemoteUrl(host, port, path if path.startswith("/") else f"/{path}")


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def connect_to(address: str, port: int, seconds: float) -> socket.socket:
    """Open a TCP connection to an address."""
    return socket.create_connection((address, port), seconds)


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet and contains no other address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and (ip.scope_id or any(ip in network for network in _EMBEDDING)):
        return False
    return ip.is_global and not ip.is_multicast


class ImageFetcher:
    """Fetches images within limits of size and time.

    Args:
        max_bytes: maximum size of an image file.
        resolve: returns the addresses of a host.
        connect: opens a connection to an address.
        tls: verifies the server's certificate.
    """

    def __init__(
        self,
        max_bytes: int,
        resolve: Resolve = resolve_host,
        connect: Connect = connect_to,
        tls: ssl.SSLContext | None = None,
        seconds: float = FETCH_SECONDS,
    ) -> None:
        self._max_bytes = max_bytes
        self._resolve = resolve
        self._connect = connect
        self._tls = tls or ssl.create_default_context()
        self._seconds = seconds

    def fetch(self, url: RemoteUrl, param: str) -> bytes:
        """Fetch an image; blocks for seconds.

        Args:
            param: the request's field with the URL, for the error.

        Raises:
            ApiError: it is not available, too large, or too many are being fetched.
        """
        if not _fetching.acquire(blocking=False):
            raise overloaded("too many images are being fetched; try again soon")
        try:
            return self._fetch(url)
        except (NotAvailableError, OSError, http.client.HTTPException, ValueError) as error:
            log.info("an image of %s is not available: %s", url.host, type(error).__name__)
            raise _not_available(param) from None
        finally:
            _fetching.release()

    def _fetch(self, url: RemoteUrl) -> bytes:
        addresses = self._resolve(url.host, url.port)
        if not addresses or not all(is_public(address) for address in addresses):
            raise NotAvailableError("not all addresses of the host are public")
        deadline = time.monotonic() + self._seconds
        plain = self._connected(addresses, url.port, deadline)
        with self._tls.wrap_socket(plain, server_hostname=url.host, do_handshake_on_connect=False) as connection:
            # A timeout of the socket restarts with each byte; the timer limits the whole.
            timer = threading.Timer(max(0.0, deadline - time.monotonic()), _shut_down, [connection])
            timer.daemon = True
            timer.start()
            try:
                connection.do_handshake()
                content = self._received(connection, url)
            finally:
                timer.cancel()
        if time.monotonic() > deadline:  # the end of the content may be that of the connection
            raise NotAvailableError("not received in time")
        return content

    def _connected(self, addresses: list[str], port: int, deadline: float) -> socket.socket:
        """A connection to the first address that accepts one."""
        for address in addresses:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            with suppress(OSError):
                return self._connect(address, port, remaining)
        raise NotAvailableError("no address accepts connections")

    def _received(self, connection: ssl.SSLSocket, url: RemoteUrl) -> bytes:
        """Ask for the image and receive it."""
        host = url.host if url.port == 443 else f"{url.host}:{url.port}"
        lines = (
            f"GET {url.path} HTTP/1.1",
            f"Host: {host}",
            "Accept: image/png, image/jpeg, image/webp",
            "Accept-Encoding: identity",
            "User-Agent: jsfree",
            "Connection: close",
        )
        connection.sendall("\r\n".join((*lines, "", "")).encode("ascii"))
        response = http.client.HTTPResponse(connection, method="GET")
        with response:
            response.begin()
            if response.status != 200:
                raise NotAvailableError(f"status {response.status}")
            if response.length is not None and response.length > self._max_bytes:
                raise NotAvailableError("too large")
            content = bytearray()
            while part := response.read(CHUNK):
                content += part
                if len(content) > self._max_bytes:
                    raise NotAvailableError("too large")
            if response.length:
                raise NotAvailableError("cut off")
            return bytes(content)


def _shut_down(connection: ssl.SSLSocket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _not_available(param: str) -> ApiError:
    return invalid("the image at this URL is not available, or too large", param, "image_not_available")
