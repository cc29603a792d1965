"""Asks a judge many questions: from the store, or over HTTP within the limits; each paid reply is stored at once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from jsfree.errors import JsfreeError, JudgeError, RowError
from jsfree.judge.client import AttemptError, JudgeClient, ServedModel
from jsfree.judge.limits import Ledger, RateLimiter, backoff
from jsfree.judge.prompts import Prompt
from jsfree.judge.replies import ErrorKind, Reply, ReplyError
from jsfree.judge.requests import JudgeRequest, content_key
from jsfree.judge.settings import JudgeSettings, read_prices
from jsfree.judge.store import Claim, ReplyStore
from jsfree.judge.tally import Tally, cost_record, summary
from jsfree.texts import printable

T = TypeVar("T")
MAX_BACKOFF = 60.0


@dataclass(frozen=True)
class JudgementError:
    """Why a question has no judgement: one row of ``errors``.

    Args:
        message: what was wrong.
        text: the reply, if there is one.
    """

    request_id: str
    kind: ErrorKind
    message: str
    text: str = ""


@dataclass(frozen=True)
class Judgement(Generic[T]):
    """The parsed reply to a question, or the error in its place."""

    request_id: str
    value: T | None
    error: JudgementError | None = None


class Judge:
    """A judge with its store of replies, limits and budget, which hold over several calls of ``ask``.

    Raises:
        ConfigError: the price table is wrong or lacks the model, or the cache is not local.
    """

    def __init__(self, settings: JudgeSettings, report: Callable[[str], None] | None = None) -> None:
        self.settings = settings
        self.prices = read_prices(settings.prices) if settings.prices else None
        price = self.prices.price_of(settings.model, str(settings.prices)) if self.prices else None
        self.store = ReplyStore(settings.cache)
        self.ledger = Ledger(price, settings.budget)
        self.limiter = RateLimiter(settings.requests_per_minute, settings.tokens_per_minute)
        self.tally = Tally()
        self.report = report or (lambda _: None)

    def ask(self, questions: Iterable[JudgeRequest], parse: Callable[[str], T]) -> list[Judgement[T]]:
        """Ask questions, which are read one by one as they are sent, and parse the replies.

        Args:
            parse: maps the text of a reply to a judgement; raises ``ReplyError`` if the text lacks the requested form.

        Returns:
            The judgements in the order of the questions.

        Raises:
            JudgeError: the run stopped before the last question. Replies received are stored; run it again.
        """
        started = time.monotonic()
        try:
            return asyncio.run(_Session(self).run(iter(questions), parse))
        finally:
            self.tally.seconds += time.monotonic() - started

    def describe_model(self) -> ServedModel:
        """What the server says about the model.

        Raises:
            JudgeError: the server cannot be reached or refuses the key.
        """

        async def describe() -> ServedModel:
            async with JudgeClient(self.settings) as client:
                return await client.describe_model()

        return asyncio.run(describe())

    def record(self, *prompts: Prompt) -> dict[str, Any]:
        """The judge as results record it: its identity, the prompts, and what was asked and paid."""
        return {
            **self.settings.identity(),
            "prompts": [prompt.as_json() for prompt in prompts],
            "replies": self.tally.as_json(),
            "cost": self.cost(),
        }

    def cost(self) -> dict[str, Any] | None:
        """The cost so far; None without a price table."""
        return cost_record(self.ledger.spent, self.ledger.uncertain, self.prices)

    def summary(self) -> str:
        """One sentence about what was asked and paid."""
        return summary(self.tally, self.cost())


class _Session:
    """One call of ``Judge.ask``: workers that share a client, and the reason to stop."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.settings = judge, judge.settings
        self.client = JudgeClient(judge.settings)
        self.stopped: JsfreeError | None = None
        self.failures_in_a_row = 0
        self.settled = asyncio.Event()
        self.rng = random.Random()

    async def run(self, questions: Iterator[JudgeRequest], parse: Callable[[str], T]) -> list[Judgement[T]]:
        results: dict[int, Judgement[T]] = {}
        numbered = enumerate(questions)
        async with self.client:
            workers = (self._work(numbered, parse, results) for _ in range(self.settings.concurrency))
            await asyncio.gather(*workers)
        if self.stopped:
            raise self.stopped
        return [results[number] for number in sorted(results)]

    async def _work(
        self, questions: Iterator[tuple[int, JudgeRequest]], parse: Callable[[str], T], results: dict[int, Judgement[T]]
    ) -> None:
        while not self.stopped:
            try:
                number, question = next(questions)
                results[number] = await self._judge(question, parse)
            except StopIteration:
                return
            except JsfreeError as error:  # the other workers finish their requests, which are paid
                self._stop(error)

    def _stop(self, error: JsfreeError) -> None:
        self.stopped = self.stopped or error
        self.settled.set()

    async def _judge(self, question: JudgeRequest, parse: Callable[[str], T]) -> Judgement[T]:
        tally = self.judge.tally
        tally.asked += 1
        try:
            reply = await self._reply(question)
        except AttemptError as failure:
            return self._failed(question, failure.kind, failure.text)
        except RowError as error:
            return self._failed(question, "undecodable", error.problem)
        tally.models[reply.model or "not reported"] += 1
        try:
            if reply.is_refused:
                raise ReplyError("the judge refused to answer")
            return Judgement(question.request_id, parse(reply.text))
        except ReplyError as error:
            return self._failed(question, reply.problem(), error.problem, reply.refusal or reply.text)

    def _failed(self, question: JudgeRequest, kind: ErrorKind, message: str, text: str = "") -> Judgement[T]:
        self.judge.tally.errors[kind] += 1
        error = JudgementError(question.request_id, kind, message, self.client.without_key(text))
        return Judgement(question.request_id, None, error)

    async def _reply(self, question: JudgeRequest) -> Reply:
        """The stored reply, or a new one, which is stored."""
        store, content = self.judge.store, question.content(self.settings)
        key = content_key(content)
        if (reply := store.read(key)) is None:
            async with store.claim(key) as claim:
                if (reply := store.read(key)) is None:  # another process may have asked in the meantime
                    self.judge.tally.interrupted += claim.was_sent
                    reply = await self._attempts(question, claim)
                    await asyncio.to_thread(store.write, key, content, reply)
                    claim.mark_ended()
                    return reply
        self.judge.tally.cached += 1
        return reply

    async def _attempts(self, question: JudgeRequest, claim: Claim) -> Reply:
        """Send a question until it succeeds or cannot.

        Raises:
            AttemptError: it failed for good.
            JudgeError: the run has to stop.
            RowError: an image has an unknown format.
        """
        messages = question.messages()
        for attempt in range(1, self.settings.attempts + 1):
            await self._reserve(question)
            try:
                claim.mark_sent()
                reply = await self._send(question, messages)
                self.failures_in_a_row = 0
                return reply
            except AttemptError as failure:
                claim.mark_ended()
                if not failure.is_transient:
                    self.failures_in_a_row = 0
                    raise
                if attempt == self.settings.attempts:
                    self._count_failure(failure)
                    raise
                await self._wait(failure, attempt)
            except JsfreeError:
                claim.mark_ended()
                raise
        raise AssertionError("unreachable: 'attempts' is at least 1")

    def _bound(self, question: JudgeRequest) -> tuple[int, float]:
        """Upper bounds of the tokens and the cost of a request."""
        prompt = question.token_bound(self.settings)
        return prompt + self.settings.max_tokens, self.judge.ledger.cost(prompt, self.settings.max_tokens)

    async def _reserve(self, question: JudgeRequest) -> None:
        """Wait until the budget and the rate limits allow a request, and count it as in flight.

        Raises:
            JudgeError: the rest of the budget does not suffice.
        """
        ledger = self.judge.ledger
        tokens, cost = self._bound(question)
        while not ledger.fits(cost) and ledger.in_flight and not self.stopped:
            self.settled.clear()
            await self.settled.wait()  # requests in flight usually cost less than their bounds
        if self.stopped:
            raise self.stopped
        if not ledger.fits(cost):
            raise JudgeError(
                f"the budget of the judge is spent: {ledger.spent:.4f} of {self.settings.budget:g}"
                f" {self.judge.prices.currency if self.judge.prices else ''}, {ledger.uncertain:.4f} uncertain;"
                f" the next question may cost {cost:.4f}",
                f"run it again with a larger budget; the {self.judge.tally.paid} new replies are stored",
            )
        ledger.reserve(cost)
        try:
            await self.judge.limiter.acquire(tokens)
        except BaseException:
            ledger.settle(cost)
            raise
        if self.stopped:
            self._settle(cost)
            raise self.stopped

    async def _send(self, question: JudgeRequest, messages: list[dict[str, Any]]) -> Reply:
        """Send a reserved question once, and settle its reservation."""
        ledger, tally = self.judge.ledger, self.judge.tally
        tokens, bound = self._bound(question)
        tally.attempts += 1
        try:
            reply = await self.client.send(messages)
        except AttemptError as failure:
            self._settle(bound, uncertain=bound if failure.may_be_charged else 0.0)
            raise
        except BaseException:
            self._settle(bound)
            raise
        tally.count_paid(reply)
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            self._settle(bound, uncertain=bound)
            return reply
        self.judge.limiter.correct(tokens, reply.prompt_tokens + reply.completion_tokens)
        self._settle(bound, ledger.cost(reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens))
        return reply

    def _settle(self, reserved: float, spent: float = 0.0, uncertain: float = 0.0) -> None:
        self.judge.ledger.settle(reserved, spent, uncertain)
        self.settled.set()

    async def _wait(self, failure: AttemptError, attempt: int) -> None:
        """Wait before the next attempt; if the server asked for a pause, all requests wait.

        Raises:
            JudgeError: the server asks for more than ``max_wait`` seconds.
        """
        pause = backoff(attempt, self.settings.backoff, MAX_BACKOFF, self.rng)
        if failure.wait is not None:
            if failure.wait > self.settings.max_wait:
                raise JudgeError(
                    f"{self.settings.url} asks to wait for {failure.wait:.0f} s ({failure.text})",
                    "run it again later, or raise 'judge.max_wait'; replies received are stored",
                )
            self.judge.limiter.pause(failure.wait)
            pause += failure.wait
        self.judge.report(f"{printable(failure.text)}; trying again in {pause:.1f} s")
        await asyncio.sleep(pause)

    def _count_failure(self, failure: AttemptError) -> None:
        """Stop the run after too many questions in a row without a reply."""
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= self.settings.max_failures:
            raise JudgeError(
                f"{self.settings.url}: {self.failures_in_a_row} questions in a row got no reply, the last because of:"
                f" {failure.text}",
                "check the server and run it again; replies received are stored",
            )
