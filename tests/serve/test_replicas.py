"""A replica's failure as an HTTP error: of one request, or of a lost replica."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from serve.direct import Address, PartReceiver
from serve.http import errors
from serve.http.protocol import Answer, Choice, Delta, Question, Refusal, Started
from serve.replicas import ATTEMPTS, Replicas

QUESTION = Question(b"", "Describe.", 0.0, 1.0, 1, 0)


ANSWER = Answer((Choice("A red box.", "stop", 4),), 9)
DELTA = (Delta(0, "A red", (), 2),)


class Handle:
    """The handle of a deployment whose replica fails ``failures`` times, after ``parts`` of a stream."""

    def __init__(self, error: Exception, failures: int = ATTEMPTS, parts: tuple = ()) -> None:
        self.error, self.failures, self.parts, self.calls = error, failures, parts, 0
        self.caption = self.stream = self
        self.is_stream = False

    def options(self, stream: bool) -> "Handle":
        other = Handle(self.error, self.failures, self.parts)
        other.is_stream = stream
        return other

    def remote(self, question: Question, address: Address | None = None):
        self.calls += 1
        return self._parts() if self.is_stream else self._answer()

    async def _answer(self) -> Answer:
        if self.calls <= self.failures:
            raise self.error
        return ANSWER

    async def _parts(self):
        if self.calls > self.failures:
            yield Started(9)
            yield DELTA
            return
        for part in self.parts:
            yield part
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
    refusal = caption(Handle(error))
    response = errors.refused(refusal, "image", "prompt").response()
    assert (response.status_code, response.headers["x-should-retry"]) == (status, retry)
    assert b"secret" not in response.body
    assert (b"replaced" in response.body) == (status == 503)


def caption(handle: Handle) -> Answer | Refusal:
    return asyncio.run(Replicas(handle, PartReceiver()).caption(QUESTION))


def parts_of(handle: Handle) -> list:
    async def read() -> list:
        receiver = PartReceiver()
        try:
            return [part async for part in Replicas(handle, receiver).stream(QUESTION)]
        finally:
            receiver.close()

    return asyncio.run(read())


def test_a_question_is_asked_again_when_its_replica_dies():
    handle = Handle(ActorDiedError(), failures=ATTEMPTS - 1)
    assert caption(handle) == ANSWER
    handle = Handle(failed_task(ValueError()), failures=1)
    assert caption(handle).reason == "failed"
    assert handle.calls == 1


def test_a_stream_is_asked_again_only_before_its_first_part():
    assert parts_of(Handle(ActorDiedError(), failures=1)) == [Started(9), DELTA]
    *sent, last = parts_of(Handle(ActorDiedError(), failures=1, parts=(Started(9), DELTA)))
    assert sent == [Started(9), DELTA]
    assert isinstance(last, Refusal)
    assert last.reason == "unavailable"
    *sent, last = parts_of(Handle(failed_task(ValueError()), failures=1, parts=(Started(9),)))
    assert (sent, last.reason) == ([Started(9)], "failed")
