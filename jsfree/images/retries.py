"""Reads from stores that fail now and then: which failures are worth another attempt, and what each one means.

fsspec raises ``FileNotFoundError`` for whatever goes wrong with an HTTP request, and the clients of object stores
have exceptions of their own. What happened is in the status of the response, somewhere along the chain of causes.
"""

from __future__ import annotations

import asyncio
import errno
import http
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from fsspec.core import split_protocol

from jsfree.errors import RowError
from jsfree.run.filesystems import reason

DELAYS = (0.5, 1.5)
"""Seconds before the second and the third attempt, half of them drawn at random."""
MAX_DELAY = 15.0
"""Seconds: the longest that a server's ``Retry-After`` is followed."""
PATIENCE = 60.0
"""Seconds after which a read is not attempted again."""
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
MISSING_STATUSES = frozenset({404, 410})
_TRANSIENT_ERRNOS = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH}
    | {errno.ENETUNREACH, errno.EPIPE, errno.ETIMEDOUT}
)
# Clients' own classes for a connection that broke or was never made: of aiohttp, botocore, requests and azure.
_NETWORK_FAILURES = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionError",
        "HTTPClientError",
        "ServiceRequestError",
        "Timeout",
    }
)

Read = TypeVar("Read")
_failing: set[str] = set()
_lock = threading.Lock()


def read_with_retries(uri: str, read: Callable[[], Read]) -> Read:
    """Call ``read``, up to ``1 + len(DELAYS)`` times while it fails for a reason that may pass.

    A host on which all attempts failed gets one attempt a read until a read succeeds again: a store that is down
    costs its delays once, not once an image.

    Raises:
        Exception: what the last attempt raised.
    """
    host, started = _host(uri), time.monotonic()
    for delay in DELAYS:
        try:
            return _succeeded(host, read())
        except Exception as error:
            pause = _pause(error, delay)
            if not is_transient(error) or host in _failing or time.monotonic() - started + pause > PATIENCE:
                raise
            time.sleep(pause)
    try:
        return _succeeded(host, read())
    except Exception as error:
        if is_transient(error):
            with _lock:
                _failing.add(host)
        raise


def read_error(error: Exception, name: str) -> RowError:
    """What a failed read is for the image ``name``: ``missing`` if it is known not to exist, else ``unreadable``."""
    status = status_of(error)
    if status in MISSING_STATUSES or (status is None and _is_not_found(error)):
        return RowError("missing", f"image {name} does not exist", "restore it or remove it from the source")
    return RowError("unreadable", f"image {name} cannot be read ({_told(error, status)})", f"{_remedy(error, status)}")


def status_of(error: BaseException) -> int | None:
    """The HTTP status that ``error`` or one of its causes carries."""
    for cause in _causes(error):
        if _is_network_failure(cause):  # a broken connection: what caused it may carry a code that no server sent
            return None
        for status in _statuses(cause):
            if str(status).isdecimal() and 400 <= int(str(status)) < 600:
                return int(str(status))
    return None


def _statuses(error: BaseException) -> Iterator[object]:
    """Where clients keep the status of a response."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        yield response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    yield getattr(response, "status_code", None)  # requests
    for name in ("status", "status_code", "code"):  # aiohttp; azure; gcsfs and urllib
        if hasattr(error, name):
            yield getattr(error, name)


def is_transient(error: BaseException) -> bool:
    """Whether the same read may succeed a moment later."""
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT_STATUSES
    return any(_is_network_failure(cause) for cause in _causes(error))


def _is_network_failure(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError | asyncio.TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & _NETWORK_FAILURES)


def _is_not_found(error: Exception) -> bool:
    """A ``FileNotFoundError`` of the filesystem itself; one that was raised from another error stands for that."""
    own = all(isinstance(cause, FileNotFoundError | LookupError) for cause in _causes(error))
    return isinstance(error, FileNotFoundError) and own


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    cause: BaseException | None = error
    for _ in range(10):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _pause(error: BaseException, delay: float) -> float:
    """Seconds to wait: what the server asks for, else ``delay``, spread so that readers do not return together."""
    for cause in _causes(error):
        headers = getattr(cause, "headers", None) or {}
        asked = headers.get("Retry-After", "") if hasattr(headers, "get") else ""
        if str(asked).isdecimal():
            return min(float(asked), MAX_DELAY)
    return delay * random.uniform(0.5, 1)


def _told(error: Exception, status: int | None) -> str:
    if status is None:
        root = [cause for cause in _causes(error) if not isinstance(cause, FileNotFoundError)]
        return reason(root[0] if root else error)[:200]
    known = status in {each.value for each in http.HTTPStatus}
    return f"HTTP {status} {http.HTTPStatus(status).phrase}" if known else f"HTTP {status}"


def _remedy(error: Exception, status: int | None) -> str:
    if status in (401, 403):
        return "the server refuses access: check your credentials for it"
    if status == 429:
        return "the server limits requests: read with fewer workers, or later"
    if is_transient(error):
        return "the server does not answer reliably: try again when it does"
    return "check the path and your access to it"


def _succeeded(host: str, content: Read) -> Read:
    if host in _failing:
        with _lock:
            _failing.discard(host)
    return content


def _host(uri: str) -> str:
    """The store that a URI belongs to: protocol and host or bucket; empty for local files."""
    protocol, rest = split_protocol(uri)
    return f"{protocol}://{rest.partition('/')[0]}" if protocol else ""
