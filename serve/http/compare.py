"""Comparisons: the same question to several models, with the scores of their sentences by CLIP.

Sentences that no other model says are marked: the difference between the captions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from statistics import fmean
from typing import Any

from jsfree.config import Serve
from jsfree.stages.sentences import sentences, words
from serve.http import errors, streaming
from serve.http.protocol import (
    Answer,
    CaptionModel,
    Choice,
    Question,
    Refusal,
    RunModel,
    ScoredSentence,
    Scorer,
)
from serve.http.responses import DONE, event, usage


class Comparer:
    """Compares the models of a run."""

    def __init__(
        self,
        models: Sequence[RunModel],
        replicas: Mapping[str, CaptionModel],
        settings: Serve,
        scorer: Scorer | None,
    ) -> None:
        self._names = {model.role: model.name for model in models}
        self._replicas, self._settings, self._scorer = replicas, settings, scorer

    async def compare(self, question: Question, roles: Sequence[str], *, scored: bool) -> dict[str, Any]:
        """The captions of a question by some models.

        Raises:
            ApiError: a model refuses.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask(role, question)) for role in roles]
        outcomes = [task.result() for task in tasks]
        answers: list[Answer] = []
        for outcome in outcomes:
            if isinstance(outcome, Refusal):
                raise errors.refused(outcome, "image", "prompt")
            answers.append(outcome)
        choices = [answer.choices[0] for answer in answers]
        prompt_tokens = sum(answer.prompt_tokens for answer in answers)
        return await self._comparison(question, roles, choices, prompt_tokens, scored=scored)

    async def events(self, question: Question, roles: Sequence[str], *, scored: bool) -> AsyncGenerator[bytes, None]:
        """The captions as they are decoded: events of new text, then one with the whole comparison.

        Raises:
            ApiError: a model refuses.
        """
        queue: asyncio.Queue[_News] = asyncio.Queue()
        readers = [_Reader(role, self._replicas[role], question, queue) for role in roles]
        tasks = [asyncio.create_task(reader.read()) for reader in readers]
        running, starting, early = len(tasks), set(roles), b""
        try:
            while running:
                news = await queue.get()
                if isinstance(news, Exception):
                    raise news
                if news is None:
                    running -= 1
                    continue
                role, text = news
                if text:
                    early += event({"object": "comparison.delta", "model": self._names[role], "delta": text})
                else:
                    starting.discard(role)
                    early = early or self._start_event(question, roles)
                if not starting:  # nothing is sent before all models have accepted the question
                    yield early
                    early = b""
            choices = [task.result() for task in tasks]
            prompt_tokens = sum(reader.prompt_tokens for reader in readers)
            comparison = await self._comparison(question, roles, choices, prompt_tokens, scored=scored)
            yield event(comparison) + DONE
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start_event(self, question: Question, roles: Sequence[str]) -> bytes:
        models = [{"model": self._names[role], "role": role} for role in roles]
        return event({"object": "comparison.start", "seed": question.seed, "models": models})

    async def _ask(self, role: str, question: Question) -> Answer | Refusal:
        return await self._replicas[role].caption(question)

    async def _comparison(
        self,
        question: Question,
        roles: Sequence[str],
        choices: Sequence[Choice],
        prompt_tokens: int,
        *,
        scored: bool,
    ) -> dict[str, Any]:
        captions = [choice.text for choice in choices]
        found = None
        if scored and self._scorer is not None and question.image is not None:
            found = await self._scorer.score(question.image, captions)
        if found is None:
            found = [[ScoredSentence(sentence, None) for sentence in sentences(text)] for text in captions]
        marked = mark_unique([[sentence.text for sentence in each] for each in found])
        described = [
            {
                "model": self._names[role],
                "role": role,
                "text": choice.text,
                "finish_reason": choice.finish,
                "tokens": choice.tokens,
                "score": _mean([sentence.score for sentence in each]),
                "sentences": [
                    {"text": sentence.text, "score": sentence.score, "unique": unique}
                    for sentence, unique in zip(each, uniques, strict=True)
                ],
            }
            for role, choice, each, uniques in zip(roles, choices, found, marked, strict=True)
        ]
        return {
            "object": "comparison",
            "created": int(time.time()),
            "prompt": question.prompt,
            "seed": question.seed,
            "captions": described,
            **dict(zip(roles, described, strict=True)),
            "usage": usage(prompt_tokens, (choice.tokens for choice in choices)),
        }


_News = tuple[str, str] | Exception | None
"""The role of a model with new text, which is empty when the model starts; an error; the end of a model's stream."""


class _Reader:
    """Reads the stream of one model into a queue that several share."""

    def __init__(self, role: str, model: CaptionModel, question: Question, queue: asyncio.Queue[_News]) -> None:
        self._role, self._model, self._question, self._queue = role, model, question, queue
        self.prompt_tokens = 0

    async def read(self) -> Choice:
        """The whole caption; an error is put into the queue and raised."""
        try:
            return await self._choice()
        except Exception as error:
            self._queue.put_nowait(error)
            raise
        finally:
            self._queue.put_nowait(None)

    async def _choice(self) -> Choice:
        text, last = "", None
        async with aclosing(self._model.stream(self._question)) as stream:
            self.prompt_tokens = (await streaming.start(stream, "image", "prompt")).prompt_tokens
            self._queue.put_nowait((self._role, ""))
            async for part in stream:
                if isinstance(part, Refusal):
                    raise errors.refused(part, "image", "prompt")
                for delta in part if isinstance(part, tuple) else ():
                    text, last = text + delta.text, delta
                    if delta.text:
                        self._queue.put_nowait((self._role, delta.text))
        if last is None or last.finish is None:
            raise errors.internal()
        return Choice(text, last.finish, last.tokens)


def mark_unique(captions: Sequence[Sequence[str]]) -> list[list[bool]]:
    """For each sentence of each caption, whether no other caption has a sentence of the same words."""
    spoken = [[tuple(words(sentence)) for sentence in caption] for caption in captions]
    return [
        [all(said not in other for index, other in enumerate(spoken) if index != own) for said in caption]
        for own, caption in enumerate(spoken)
    ]


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return fmean(known) if known else None
