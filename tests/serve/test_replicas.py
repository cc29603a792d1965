"""What the HTTP side makes of a replica's failure: one request's fault, or a replica that has gone."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from serve.app import Replicas
from serve.http import errors
from serve.http.protocol import Question

QUESTION = Question(b"", "Describe.", 0.0, 1.0, 1, 0)


class Handle:
    """A deployment's handle whose replica fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.caption = self

    async def remote(self, question: Question) -> None:
        raise self.error


def failed_task(cause: Exception) -> Exception:
    """As Ray raises an exception of the code that ran."""
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
def test_only_a_replica_that_has_gone_is_worth_another_try(error, status, retry):
    refusal = asyncio.run(Replicas(Handle(error)).caption(QUESTION))
    response = errors.refused(refusal, "image", "prompt").response()
    assert (response.status_code, response.headers["x-should-retry"]) == (status, retry)
    assert b"secret" not in response.body
    assert (b"replaced" in response.body) == (status == 503)
