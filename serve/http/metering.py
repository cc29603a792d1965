"""Observes models from outside: their answers, streams and load, for the metrics and the record of each request."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager

from jsfree.config import Serve
from serve.http import context
from serve.http.metrics import Metrics
from serve.http.protocol import Answer, CaptionModel, Choice, Delta, Part, Question, Refusal, Started


def metered(models: Mapping[str, CaptionModel], metrics: Metrics, settings: Serve) -> dict[str, CaptionModel]:
    """Models by role that are observed."""
    return {role: Metered(role, model, metrics, _slots(role, settings)) for role, model in models.items()}


def _slots(role: str, settings: Serve) -> int:
    """Captions that the replicas of a model decode at once, at most."""
    return settings.slots * settings.placement_of(role).most_replicas


class Metered:
    """A model whose answers are counted and timed.

    Args:
        role: the model's label.
        slots: captions that all replicas of the model decode at once; more are taken to wait for a slot.
    """

    def __init__(self, role: str, model: CaptionModel, metrics: Metrics, slots: int) -> None:
        self._role = role
        self._model = model
        self._metrics = metrics
        self._slots = slots
        self._captions = 0
        self._report_load()

    async def healthy(self) -> bool:
        """Whether decoding makes progress."""
        return await self._model.healthy()

    async def context_length(self) -> int | None:
        """Most tokens of prompt and caption; None if the model does not answer."""
        return await self._model.context_length()

    async def caption(self, question: Question) -> Answer | Refusal:
        """Caption an image; cancelling the call frees its slots."""
        with self._in_progress(question):
            started = time.perf_counter()
            outcome = await self._model.caption(question)
            if isinstance(outcome, Refusal):
                self._metrics.refused.labels(self._role, outcome.reason).inc()
            else:
                self._prompt(outcome.prompt_tokens)
                seconds = time.perf_counter() - started
                self._first_tokens(outcome.choices, seconds)
                for choice in outcome.choices:
                    self._completion(choice.tokens)
                    self._ended(choice)
                self._metrics.latency.labels(self._role).observe(seconds)
            return outcome

    async def stream(self, question: Question) -> AsyncGenerator[Part, None]:
        """Caption an image in parts; closing the generator frees its slots."""
        with self._in_progress(question):
            started = time.perf_counter()
            tokens = _Tokens(started)
            async with aclosing(self._model.stream(question)) as parts:
                async for part in parts:
                    if isinstance(part, Refusal):
                        self._metrics.refused.labels(self._role, part.reason).inc()
                    elif isinstance(part, Started):
                        self._prompt(part.prompt_tokens)
                    else:
                        self._deltas(part, tokens)
                    yield part
            self._metrics.latency.labels(self._role).observe(time.perf_counter() - started)

    def _deltas(self, deltas: tuple[Delta, ...], tokens: _Tokens) -> None:
        now = time.perf_counter()
        for delta in deltas:
            added, seconds = tokens.add(delta, now)
            self._completion(added)  # as they come: the client may leave before the caption ends
            first = added > 0 and delta.tokens == added
            if first:
                self._metrics.first_token.labels(self._role).observe(seconds)
            for _ in range(0 if first else added):
                self._metrics.inter_token.labels(self._role).observe(seconds / added)
            if delta.finish is not None:
                self._ended(delta)

    def _prompt(self, tokens: int) -> None:
        self._metrics.prompt_tokens.labels(self._role).inc(tokens)
        context.current().prompt_tokens += tokens

    def _completion(self, tokens: int) -> None:
        self._metrics.generation_tokens.labels(self._role).inc(tokens)
        context.current().completion_tokens += tokens

    def _first_tokens(self, choices: Sequence[Choice], seconds: float) -> None:
        """Observe when the first tokens would have come in a stream.

        Args:
            choices: the captions of an answer, which the engine got at the same time.
            seconds: time to the end of the answer, of which the engine knows the part after each first token.
        """
        timings = [choice.timing for choice in choices if choice.timing is not None]
        finished = max((timing.finished for timing in timings), default=0.0)
        for timing in timings:
            self._metrics.first_token.labels(self._role).observe(seconds - (finished - timing.first_token))

    def _ended(self, caption: Choice | Delta) -> None:
        self._metrics.success.labels(self._role, caption.finish).inc()
        if caption.timing is not None:
            self._metrics.queue.labels(self._role).observe(caption.timing.started)

    @contextmanager
    def _in_progress(self, question: Question) -> Iterator[None]:
        context.current().models.append(self._role)
        self._captions += question.choices
        self._report_load()
        try:
            yield
        finally:
            self._captions -= question.choices
            self._report_load()

    def _report_load(self) -> None:
        running = min(self._captions, self._slots)
        self._metrics.running.labels(self._role).set(running)
        self._metrics.waiting.labels(self._role).set(self._captions - running)
        self._metrics.cache_usage.labels(self._role).set(running / self._slots)


class _Tokens:
    """The tokens of each caption of a stream so far, and when the last of them came."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._seen: dict[int, tuple[int, float]] = {}

    def add(self, delta: Delta, now: float) -> tuple[int, float]:
        """The number of new tokens, and the seconds since the caption's last ones."""
        count, at = self._seen.get(delta.choice, (0, self._started))
        self._seen[delta.choice] = (delta.tokens, now)
        return delta.tokens - count, now - at
