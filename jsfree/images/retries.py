"""Retries of reads from remote filesystems, and the classification of their errors.

fsspec raises ``FileNotFoundError`` for any failed HTTP request, and clients of object stores have their own exceptions.
The HTTP status, which tells the actual cause, is an attribute somewhere in the chain of causes.
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
"""Seconds before the second and third attempt, each with a random reduction of up to 50%."""
MAX_DELAY = 15.0
"""Maximum seconds to wait for a server's ``Retry-After``."""
RETRY_SECONDS = 60.0
"""Seconds after which a read is not retried."""
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
MISSING_STATUSES = frozenset({404, 410})
_TRANSIENT_ERRNOS = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH}
    | {errno.ENETUNREACH, errno.EPIPE, errno.ETIMEDOUT}
)
# Exception classes for connection failures in aiohttp, botocore, requests and azure.
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
    """Call ``read``, and retry transient errors up to ``len(DELAYS)`` times.

    After a host has failed all attempts, its reads are not retried until one succeeds, so an unavailable host causes
    the delays once, not once per image.

    Raises:
        Exception: the error of the last attempt.
    """
    host, started = _host(uri), time.monotonic()
    for delay in DELAYS:
        try:
            return _clear_failure(host, read())
        except Exception as error:
            pause = _pause(error, delay)
            if not is_transient(error) or host in _failing or time.monotonic() - started + pause > RETRY_SECONDS:
                raise
            time.sleep(pause)
    try:
        return _clear_failure(host, read())
    except Exception as error:
        if is_transient(error):
            with _lock:
                _failing.add(host)
        raise


def read_error(error: Exception, name: str) -> RowError:
    """Convert an exception of a read to an error of kind ``missing`` (the image does not exist) or ``unreadable``."""
    status = status_of(error)
    if status in MISSING_STATUSES or (status is None and _is_not_found(error)):
        return RowError("missing", f"image {name} does not exist", "restore it or remove it from the source")
    return RowError("unreadable", f"image {name} cannot be read ({_cause(error, status)})", _remedy(error, status))


def status_of(error: BaseException) -> int | None:
    """Find the HTTP status of ``error`` or of one of its causes."""
    for cause in _causes(error):
        if _is_network_failure(cause):  # codes of its causes were not sent by the server
            return None
        for status in _statuses(cause):
            if str(status).isdecimal() and 400 <= int(str(status)) < 600:
                return int(str(status))
    return None


def _statuses(error: BaseException) -> Iterator[object]:
    """Yield the attributes in which clients store the status of a response."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        yield response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    yield getattr(response, "status_code", None)  # requests
    for name in ("status", "status_code", "code"):  # aiohttp; azure; gcsfs and urllib
        if hasattr(error, name):
            yield getattr(error, name)


def is_transient(error: BaseException) -> bool:
    """Whether a retry may succeed."""
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
    """Whether the file does not exist. A ``FileNotFoundError`` raised from another kind of error does not count."""
    has_other_cause = not all(isinstance(cause, FileNotFoundError | LookupError) for cause in _causes(error))
    return isinstance(error, FileNotFoundError) and not has_other_cause


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Iterate over the chain of causes, starting with the error itself."""
    cause: BaseException | None = error
    for _ in range(10):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _pause(error: BaseException, delay: float) -> float:
    """Seconds to wait: the server's ``Retry-After``, or ``delay`` with jitter."""
    for cause in _causes(error):
        headers = getattr(cause, "headers", None) or {}
        retry_after = headers.get("Retry-After", "") if hasattr(headers, "get") else ""
        if str(retry_after).isdecimal():
            return min(float(retry_after), MAX_DELAY)
    return delay * random.uniform(0.5, 1)


def _cause(error: Exception, status: int | None) -> str:
    if status is None:
        others = [cause for cause in _causes(error) if not isinstance(cause, FileNotFoundError)]
        return reason(others[0] if others else error)[:200]
    is_standard = status in {standard.value for standard in http.HTTPStatus}
    return f"HTTP {status} {http.HTTPStatus(status).phrase}" if is_standard else f"HTTP {status}"


def _remedy(error: Exception, status: int | None) -> str:
    if status in (401, 403):
        return "the server denies access: check your credentials"
    if status == 429:
        return "the server limits the request rate: use fewer workers, or try again later"
    if is_transient(error):
        return "the server is unreliable: try again later"
    return "check the path and your access to it"


def _clear_failure(host: str, content: Read) -> Read:
    if host in _failing:
        with _lock:
            _failing.discard(host)
    return content


def _host(uri: str) -> str:
    """Protocol and host (or bucket) of a URI; empty for local files."""
    protocol, rest = split_protocol(uri)
    return f"{protocol}://{rest.partition('/')[0]}" if protocol else ""
