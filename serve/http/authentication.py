"""ASGI middleware that admits only requests with a valid key.

Every path requires one, also those that do not exist, except ``OPEN_PATHS``. A server without keys answers requests
from its own machine only, wherever it listens, unless ``no_auth`` allows everyone. A browser on this machine could pass
on the requests of other sites, so such a server also checks the ``Host`` and ``Origin`` headers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http import context
from serve.http.errors import ApiError
from serve.http.rate_limits import RateLimits
from serve.keys import Key, Keyring, is_loopback
from serve.page import PAGES

OPEN_PATHS = frozenset({"/health", "/ping", *PAGES})
"""The pages are open because they ask for the key; they hold no data of the run."""
METRICS = "/metrics"
MAX_KEY = 512
"""Maximum length of a key in characters."""


class Authentication:
    """Checks the key of each request, what it may do, and its rate limits.

    Args:
        keyring: the server's keys.
        no_auth: whether requests from other machines need no key where there are none.
        origins: sites whose pages may send requests to a server without keys; ``*`` for all.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring, *, no_auth: bool, origins: Collection[str] = ()) -> None:
        self._app = app
        self._keyring = keyring
        self._no_auth = no_auth
        self._origins = origins
        self._limits = RateLimits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        key = None
        try:
            key = self._admitted(scope)
            if key is not None and scope["path"] != METRICS:
                self._limits.admit(key)
        except ApiError as error:
            response = error.response()
            response.headers["connection"] = "close"  # the body is not read
            if error.status == 401:
                response.headers["www-authenticate"] = "Bearer"
            response.headers.update(dict(self._limits.headers(key)) if key is not None else {})
            await response(scope, receive, send)
            return
        await (self._app(scope, receive, send) if key is None else self._run(key, scope, receive, send))

    async def _run(self, key: Key, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with its key's headers, and count its tokens."""
        record = context.current()
        record.key = key.name

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._limits.charge(key, record.prompt_tokens + record.completion_tokens)
                record.charged_tokens = record.prompt_tokens + record.completion_tokens
                headers = MutableHeaders(scope=message)
                for name, value in self._limits.headers(key):
                    headers[name] = value
            await send(message)

        try:
            await self._app(scope, receive, with_headers)
        finally:
            self._limits.charge(key, record.prompt_tokens + record.completion_tokens - record.charged_tokens)

    def _admitted(self, scope: Scope) -> Key | None:
        """The key of a request that may be answered; None if it needs none.

        Raises:
            ApiError: it has no valid key, or one that may not do this.
        """
        if self._keyring.is_empty:
            if not self._no_auth:
                self._require_local(scope)
            return None
        kind, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            message = "no API key; send it as 'Authorization: Bearer KEY'"
            raise ApiError(401, message, code="invalid_api_key")
        key = self._keyring.find(secret.strip()) if len(secret) <= MAX_KEY else None
        if key is None:
            raise ApiError(401, "the API key is not valid", code="invalid_api_key")
        wanted = "metrics" if scope["path"] == METRICS else "captions"
        if key.access not in (wanted, "all"):
            message = f"the API key may not be used for {wanted}"
            raise ApiError(403, message, code="insufficient_permissions", kind="permission_error")
        return key

    def _require_local(self, scope: Scope) -> None:
        """Check that a request comes from this machine, and not from another site through a browser on it.

        Raises:
            ApiError: it comes from another machine, names another host (DNS rebinding), or is of another site's page.
        """
        address = _client_address(scope)
        if address is not None and not address.is_loopback:
            raise ApiError(403, "this server has no keys and answers only its own machine", code="no_keys")
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        if address is not None and host is not None and not _is_loopback(host):
            message = (
                "this server has no keys and answers only to a loopback address or localhost; make a key for others"
            )
            raise ApiError(403, message, code="host_not_allowed", kind="permission_error")
        if origin is None or not {origin, "*"}.isdisjoint(self._origins):
            return
        if host is None or origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            message = "this server has no keys and answers pages of other sites only if serve.cors_origins names them"
            raise ApiError(403, message, code="origin_not_allowed", kind="permission_error")


def _is_loopback(host: str) -> bool:
    """Whether a ``Host`` header names this machine by ``localhost`` or a loopback address."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _client_address(scope: Scope) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a request comes from; None if it has not come over the network."""
    client = scope.get("client")
    try:
        return None if client is None else ipaddress.ip_address(client[0])
    except ValueError:  # a client in this process
        return None
