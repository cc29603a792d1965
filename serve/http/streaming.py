"""Server-sent events: the response, and those of a completion.

A refusal before the stream starts is an ordinary error response. Later errors are events, after which the stream ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from starlette.responses import StreamingResponse

from jsfree.config import Serve
from serve.http import context, errors
from serve.http.errors import ApiError
from serve.http.protocol import Part, Refusal, Started
from serve.http.responses import DONE, CompletionChunks, event

log = logging.getLogger(__name__)
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Proxies must pass events on as they come (nginx: the second)."""
TIME_SHARE = 0.95
"""Share of ``request_timeout_s`` after which a stream ends with an error event; at the limit the connection is cut.
Both are counted from the start of the request, which can be long before that of the response."""


async def start(stream: AsyncGenerator[Part, None], image_param: str, prompt_param: str) -> Started:
    """Wait until a model has accepted a question.

    Args:
        stream: the parts of the answer.
        image_param: the request's field that an error of the image is attributed to.
        prompt_param: the same of the texts.

    Raises:
        ApiError: it has not.
    """
    first = await anext(stream, None)
    if isinstance(first, Started):
        return first
    await stream.aclose()
    refusal = first if isinstance(first, Refusal) else Refusal("unavailable", "the model does not answer; try again")
    raise errors.refused(refusal, image_param, prompt_param)


async def started(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Events whose first one is there.

    Raises:
        ApiError: the generator raised it instead.
    """
    first = await anext(events)

    async def all_events() -> AsyncGenerator[bytes, None]:
        async with aclosing(events):
            yield first
            async for each in events:
                yield each

    return all_events()


async def completion_events(
    stream: AsyncGenerator[Part, None], started: Started, chunks: CompletionChunks
) -> AsyncGenerator[bytes, None]:
    """The events of a completion that has started.

    Raises:
        ApiError: the model refuses in mid-stream.
    """
    async with aclosing(stream):
        yield chunks.first()
        async for part in stream:
            if isinstance(part, Refusal):
                raise errors.refused(part, "messages", "messages")
            if not isinstance(part, Started):
                content = chunks.of(part)
                if content:
                    yield content
        yield chunks.last(started.prompt_tokens)


def response(events: AsyncGenerator[bytes, None], settings: Serve) -> StreamingResponse:
    """The response that sends events; errors become the last event."""
    content = _with_errors(events, settings.request_timeout_s, context.current().started)
    return StreamingResponse(content, media_type="text/event-stream", headers=HEADERS)


async def _with_errors(events: AsyncGenerator[bytes, None], seconds: float, started: float) -> AsyncIterator[bytes]:
    remaining = started + TIME_SHARE * seconds - time.monotonic()
    deadline = asyncio.get_running_loop().time() + remaining
    try:
        async with aclosing(events):
            while True:
                async with asyncio.timeout_at(deadline):
                    content = await anext(events, None)
                if content is None:
                    return
                yield content
    except ApiError as error:
        yield event(error.content()) + DONE
    except TimeoutError:
        yield event(errors.timed_out(seconds).content()) + DONE
    except Exception:
        log.exception("a stream failed")
        yield event(errors.internal().content()) + DONE
