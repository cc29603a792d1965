"""What is known about the request that is being answered, for the access log, the metrics and the rate limits.

The outermost middleware makes a record, and everything that answers the request adds to it. It is found through a
context variable, which tasks inherit, so that models and routes do not pass it on.
"""

from __future__ import annotations

import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass
class RequestRecord:
    """A request in progress.

    Attributes:
        id: the client's ``x-request-id`` if it is short and plain, otherwise a new one.
        key: name of the client's key.
        models: roles of the models that were asked.
        prompt_tokens: tokens of all prompts, including image tokens.
        completion_tokens: tokens of all captions.
        charged_tokens: tokens that were counted towards the key's limit already.
        started: when the time limit of the request began, in seconds of ``time.monotonic``.
    """

    id: str
    key: str | None = None
    models: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    charged_tokens: int = 0
    started: float = field(default_factory=time.monotonic)


_current: ContextVar[RequestRecord | None] = ContextVar("jsfree_request", default=None)


def begin(given_id: str | None) -> RequestRecord:
    """Make the record of a request.

    Args:
        given_id: the ``x-request-id`` that the client sent.
    """
    record = RequestRecord(bounded_id(given_id))
    _current.set(record)
    return record


def current() -> RequestRecord:
    """The record of the request that is being answered, or an unused one outside requests."""
    return _current.get() or RequestRecord("none")


def bounded_id(given: str | None) -> str:
    """``given`` if it is at most 128 letters, digits and ``._:-``; otherwise a new random identifier."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
