"""The replicas of a deployment behind the interface of one ``CaptionModel``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve.direct import Address, LostPartsError, PartReceiver
from serve.http.protocol import Answer, Part, Question, Refusal, ScoredSentence

log = logging.getLogger(__name__)
ATTEMPTS = 3
"""How often a question is asked whose replica dies."""
FAILED = Refusal("failed", "the model failed on this request; see the server's log")
LOST = Refusal("unavailable", "the model does not answer and is being replaced; try again soon")


class Replicas:
    """Asks one of the replicas.

    A question whose replica dies is asked again, of another replica or of the one that takes its place. Its answer is
    the same, because a question has the seed of its random numbers. A stream of which a part has been sent ends with a
    refusal.
    """

    def __init__(self, handle: DeploymentHandle[Any], receiver: PartReceiver) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._receiver = receiver

    async def caption(self, question: Question) -> Answer | Refusal:
        """Caption an image; cancelling the call frees its slots."""
        for _ in range(ATTEMPTS):
            response = self._handle.caption.remote(question)
            try:
                answer: Answer | Refusal = await response
            except asyncio.CancelledError:
                response.cancel()  # type: ignore[no-untyped-call]
                raise
            except RayTaskError:  # the replica is alive and would fail again on the same request
                log.exception("a replica failed on a request")
                return FAILED
            except (RayError, RayServeException) as error:
                log.warning("a replica was lost: %s", type(error).__name__)
            else:
                return answer
        return LOST

    async def stream(self, question: Question) -> AsyncGenerator[Part, None]:
        """Caption an image in parts; closing the generator frees its slots."""
        has_sent = False
        for attempt in range(ATTEMPTS):
            try:
                async with aclosing(self._attempt(question, direct=attempt == 0)) as parts:
                    async for part in parts:
                        has_sent = True
                        yield part
            except RayTaskError:
                log.exception("a replica failed on a request")
                yield FAILED
                return
            except (RayError, RayServeException, LostPartsError) as error:
                log.warning("a replica was lost: %s", type(error).__name__)
                if has_sent:
                    break
            else:
                return
        yield LOST

    async def _attempt(self, question: Question, *, direct: bool) -> AsyncGenerator[Part, None]:
        """Ask a replica for a stream; closing the generator before its end cancels the call.

        Raises:
            RayError, RayServeException, LostPartsError: the replica has failed or is lost.
        """
        responses: list[Any] = []

        def call(address: Address | None) -> Any:
            responses.append(self._streaming.stream.remote(question, address))
            return responses[0]

        try:
            async with aclosing(self._receiver.stream(call, direct=direct)) as parts:
                async for part in parts:
                    yield part
        except (asyncio.CancelledError, GeneratorExit):
            for response in responses:
                response.cancel()
            raise

    async def context_length(self) -> int | None:
        """Most tokens of prompt and caption; None if no replica answers."""
        try:
            length: int | None = await self._handle.context_length.remote()
        except (RayError, RayServeException):
            return None
        return length

    async def healthy(self) -> bool:
        """Whether decoding makes progress in one of the replicas."""
        try:
            return bool(await self._handle.healthy.remote())
        except (RayError, RayServeException):
            return False


class ScorerReplicas:
    """Asks one of the replicas that have a CLIP model."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def score(self, image: bytes, captions: Sequence[str]) -> list[list[ScoredSentence]] | None:
        """The sentences of each caption with their scores; None if no replica answers."""
        try:
            scored: list[list[ScoredSentence]] | None = await self._handle.score.remote(image, captions)
        except (RayError, RayServeException) as error:
            log.warning("sentences are not scored: %s", type(error).__name__)
            return None
        return scored
