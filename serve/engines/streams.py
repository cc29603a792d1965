"""Captions in parts, as their tokens are drawn.

The decoding thread hands tokens over to the event loop of the replica. Parts of all captions of a question are sent
together, and less often if there are many streams, because each message between processes costs more than a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from jsfree.decoding.loop import Listener
from jsfree.decoding.requests import Caption, Drawn, Request
from jsfree.models.loading import Captioner
from serve.engines.texts import IncrementalText, TokenTexts
from serve.http.protocol import Delta, TokenScore

COALESCE_SECONDS, LONGEST_COALESCE_SECONDS = 0.025, 0.06
"""Minimum time between two parts of a stream, when it is the only one and when there are many."""
SECONDS_PER_STREAM = 0.003
"""Time between two parts for each stream of the process: their parts are then at most 333 a second."""
Submit = Callable[[Sequence[Listener] | None], list[Future[Caption]]]
"""Starts to decode the requests of a question; cancelling a future frees its slot. A listener for each request gets its
tokens, at least all but the last."""


class TokenInbox:
    """Tokens of some captions, added by the decoding thread and read in an event loop."""

    def __init__(self, count: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._tokens: list[list[Drawn]] = [[] for _ in range(count)]
        self._changed, self._finished = asyncio.Event(), asyncio.Event()
        self._notified = False

    def listener(self, number: int) -> Listener:
        """A function that adds tokens of a caption."""
        tokens = self._tokens[number]

        def add(drawn: Drawn) -> None:
            if drawn.position == len(tokens):  # else the caption has restarted, and the token is known
                tokens.append(drawn)
                self.notify()

        return add

    def notify(self) -> None:
        """Wake the reader. Thread-safe."""
        if not self._notified:
            self._notified = True
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._changed.set)

    def finish(self) -> None:
        """Wake the reader at once, because a caption has ended. Thread-safe."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finished.set)
        self.notify()

    async def wait(self, pause: float) -> None:
        """Wait for news since the last call: for an ended caption, or for a token and at least ``pause`` seconds."""
        if pause:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._finished.wait()
        self._finished.clear()
        await self._changed.wait()
        self._changed.clear()
        self._notified = False

    def tokens(self, number: int) -> list[Drawn]:
        """The tokens of a caption so far."""
        return self._tokens[number][:]


_streams: set[TokenInbox] = set()
"""Streams of this process that are in progress."""


def pause(streams: int) -> float:
    """Minimum seconds between two parts of a stream, if there are so many."""
    return min(max(COALESCE_SECONDS, streams * SECONDS_PER_STREAM), LONGEST_COALESCE_SECONDS)


class _CaptionStream:
    """The state of one caption's stream."""

    def __init__(self, number: int, text: IncrementalText, token_texts: TokenTexts, end_ids: frozenset[int]) -> None:
        self._number, self._text, self._token_texts, self._end_ids = number, text, token_texts, end_ids
        self._seen = 0

    def advance(self, drawn: Sequence[Drawn]) -> Delta | None:
        """The part for all tokens so far; None if there is nothing new to send."""
        new = drawn[self._seen :]
        if not new:
            return None
        scores = tuple(self._token_texts.score(each.logp) for each in new if each.logp is not None)
        text = self._text.advance([each.token for each in drawn])
        self._seen = len(drawn)
        return Delta(self._number, text, scores, self._seen) if text or scores else None

    def finish(self, caption: Caption) -> Delta:
        """The last part of a finished caption."""
        scores = caption_scores(caption, self._token_texts, self._end_ids)[self._seen :]
        text = self._text.finish(caption.text)
        return Delta(self._number, text, scores, len(caption.token_ids), caption.finish, caption.timing)


def caption_scores(caption: Caption, token_texts: TokenTexts, end_ids: frozenset[int]) -> tuple[TokenScore, ...]:
    """The tokens of a caption without its end token; none if the request has not asked for them."""
    return tuple(token_texts.score(each) for each in caption.token_logps or () if each.token not in end_ids)


async def stream(
    submit: Submit, requests: Sequence[Request], captioner: Captioner, token_texts: TokenTexts
) -> AsyncGenerator[tuple[Delta, ...], None]:
    """Decode captions in parts; closing the generator frees their slots.

    Args:
        submit: starts to decode ``requests``.
        requests: the requests.
        captioner: the model.
        token_texts: texts of its tokens.

    Raises:
        DecodingError: see ``DecodingLoop.submit``.
    """
    inbox = TokenInbox(len(requests))
    futures = submit([inbox.listener(number) for number in range(len(requests))])
    for future in futures:
        future.add_done_callback(lambda _: inbox.finish())
    parts = [
        _CaptionStream(
            number,
            IncrementalText(captioner, token_texts, request.decoding.stop),
            token_texts,
            captioner.eos_ids,
        )
        for number, request in enumerate(requests)
    ]
    running = dict(enumerate(futures))
    seconds = 0.0
    _streams.add(inbox)
    try:
        while running:
            await inbox.wait(seconds)
            deltas = _deltas(running, parts, inbox.tokens)
            if deltas:
                yield deltas
                seconds = pause(len(_streams))
    finally:
        _streams.discard(inbox)
        for future in futures:
            future.cancel()


def _deltas(
    running: dict[int, Future[Caption]], parts: Sequence[_CaptionStream], tokens: Callable[[int], list[Drawn]]
) -> tuple[Delta, ...]:
    """New parts of the captions in ``running``, from which those that have ended are removed."""
    deltas: list[Delta] = []
    for number, future in list(running.items()):
        if future.done():
            del running[number]
            deltas.append(parts[number].finish(future.result()))
        elif (delta := parts[number].advance(tokens(number))) is not None:
            deltas.append(delta)
    return tuple(deltas)
