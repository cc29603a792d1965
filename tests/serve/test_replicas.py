"""A replica's failure as an HTTP error: of one request, or of a lost replica."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from serve.app import Replicas
from serve.http import errors
from serve.http.protocol import Question

QUESTION = Question(b"", "Describe.", 0.0, 1.0, 1, 0)


class Handle:
    """The handle of a deployment whose replica fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.caption = self

    async def remote(self, question: Question) -> None:
        raise self.error


def failed_task(cause: Exception) -> Exception:
    """The error that Ray raises for an exception in a task."""
    return RayTaskError("caption", "Traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (failed_task(UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed")), 500, "false"),
        (failed_task(ValueError("secret")), 500, "false"),
        (ActorDiedError(), 503, "true"),
        (ActorUnavailableError("gone", None), 503, "true"),
    ],
)
def test_only_a_lost_replica_is_a_retryable_error(error, status, retry):
    refusal = asyncio.run(Replicas(Handle(error)).caption(QUESTION))
    response = errors.refused(refusal, "image", "prompt").response()
    assert (response.status_code, response.headers["x-should-retry"]) == (status, retry)
    assert b"secret" not in response.body
    assert (b"replaced" in response.body) == (status == 503)
