"""What the engines of a replica have in common: admission, checks of questions, and answers from captions.

Plain classes without Ray. Callers await futures, so decoding never blocks their event loop.
"""

from __future__ import annotations

import hashlib
import uuid
from abc import ABC, abstractmethod
from asyncio import gather, get_running_loop, wrap_future
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from jinja2 import TemplateError

from jsfree.config import Decoding, Serve, Views
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.errors import ConfigError, DecodingError, DeviceError, ModelError, NoTokenError, RowError, ServeError
from jsfree.models.families.base import ImageInputs
from jsfree.models.loading import Captioner
from jsfree.models.prompts import Conversation
from serve.engines import streams
from serve.engines.streams import Submit
from serve.engines.texts import TokenTexts
from serve.http.protocol import Answer, Choice, Part, Question, Reason, Refusal, Started
from serve.http.security import image_problem, is_large_image

IMAGE_THREADS = 2
"""Threads that decode images, each of up to ``max_pixels`` pixels."""
Opened = TypeVar("Opened")
"""A preprocessed image."""


@dataclass(eq=False)
class RefusedError(Exception):
    """A question that is not answered."""

    refusal: Refusal


def refused(reason: Reason, message: str, field: str | None = None) -> RefusedError:
    """The error of a question that is refused; ``field`` is the field of the request that is wrong, if it is known."""
    return RefusedError(Refusal(reason, message, field))


class Loop(Protocol):
    """Decodes captions in the background."""

    def problem(self) -> str | None:
        """Why it cannot decode; None if it can."""

    def close(self) -> None:
        """End it; unfinished captions fail."""


@dataclass(frozen=True)
class Job:
    """A question as requests, and how to decode them."""

    requests: Sequence[Request]
    prompt_tokens: int
    loop: Loop
    submit: Submit


class CaptionEngine(ABC, Generic[Opened]):
    """A model behind the interface of ``serve.http.protocol.CaptionModel``.

    Args:
        captioner: the model; its weights are not used here.
        settings: those of serving.
    """

    def __init__(self, captioner: Captioner, settings: Serve) -> None:
        self._captioner, self._settings = captioner, settings
        self._token_texts = TokenTexts(captioner)
        self._admitted = 0
        """Number of captions that are being decoded or wait for it."""
        self._image_threads = ThreadPoolExecutor(IMAGE_THREADS, "open-image")
        self._large_image_thread = ThreadPoolExecutor(1, "open-large-image")

    @abstractmethod
    def _open(self, question: Question, content: bytes) -> Opened:
        """Decode and preprocess an image; called in another thread.

        Raises:
            RowError: the image is damaged, or exceeds a limit.
        """

    @abstractmethod
    def _lengths(self, question: Question, opened: Opened | None) -> tuple[int, int]:
        """Tokens of the prompt, and most tokens of a caption after it; the latter may be less than 1."""

    @abstractmethod
    def _job(self, question: Question, opened: Opened | None, requests: Sequence[Request], prompt_tokens: int) -> Job:
        """A question as requests and how to decode them.

        Raises:
            DeviceError: they do not fit into memory.
        """

    @abstractmethod
    def _loops(self) -> Sequence[Loop]:
        """All loops of the engine."""

    def _require_supported(self, question: Question) -> None:
        """Check that the engine can answer a question.

        Raises:
            RefusedError: it cannot.
        """

    async def caption(self, question: Question) -> Answer | Refusal:
        """Caption an image; cancelling the call frees its slots."""
        try:
            with self._admission(question):
                job = await self._prepare(question)
                with self._refusing(job):
                    captions = await gather(*(wrap_future(future) for future in job.submit(None)))
        except RefusedError as error:
            return error.refusal
        scores = [
            None
            if caption.token_logps is None
            else streams.caption_scores(caption, self._token_texts, self._captioner.eos_ids)
            for caption in captions
        ]
        choices = (
            Choice(caption.text, caption.finish, len(caption.token_ids), of, caption.timing)
            for caption, of in zip(captions, scores, strict=True)
        )
        return Answer(tuple(choices), job.prompt_tokens)

    async def stream(self, question: Question) -> AsyncGenerator[Part, None]:
        """Caption an image in parts; closing the generator frees its slots."""
        try:
            with self._admission(question):
                job = await self._prepare(question)
                yield Started(job.prompt_tokens)
                with self._refusing(job):
                    parts = streams.stream(job.submit, job.requests, self._captioner, self._token_texts)
                    async with aclosing(parts):
                        async for part in parts:
                            yield part
        except RefusedError as error:
            yield error.refusal

    def check(self) -> None:
        """Check that decoding makes progress.

        Raises:
            ServeError: it has ended, or makes no progress.
        """
        problem = self._problem()
        if problem is not None:
            raise ServeError(problem)

    async def healthy(self) -> bool:
        """Whether decoding makes progress."""
        return self._problem() is None

    async def context_length(self) -> int | None:
        """Most tokens of prompt and caption."""
        return int(self._captioner.model.config.get_text_config().max_position_embeddings)

    def close(self) -> None:
        """End the loops; requests in progress are refused."""
        for loop in self._loops():
            loop.close()
        for threads in (self._image_threads, self._large_image_thread):
            threads.shutdown(wait=False, cancel_futures=True)

    def _problem(self) -> str | None:
        return next((problem for loop in self._loops() if (problem := loop.problem()) is not None), None)

    @contextmanager
    def _admission(self, question: Question) -> Iterator[None]:
        """Count a question's captions while the block runs.

        Raises:
            RefusedError: too many are being decoded.
        """
        if self._admitted + question.choices > self._settings.slots + self._settings.max_waiting:
            raise refused("overloaded", "too many captions are being decoded; try again soon")
        self._admitted += question.choices
        try:
            yield
        finally:
            self._admitted -= question.choices

    @contextmanager
    def _refusing(self, job: Job) -> Iterator[None]:
        """Turn errors of decoding into refusals.

        Raises:
            RefusedError: an error of decoding was raised.
        """
        try:
            yield
        except DeviceError:
            raise _too_large(job.requests[0], job.prompt_tokens) from None
        except NoTokenError:
            raise refused("failed", "the model generates no token for this image and text") from None
        except DecodingError:
            if job.loop.problem() is None:
                raise refused("overloaded", "not enough memory for this request now; try again soon") from None
            raise refused("unavailable", "the model has stopped and is being replaced; try again soon") from None

    async def _prepare(self, question: Question) -> Job:
        """The requests of a question.

        Raises:
            RefusedError: its text or its image is invalid, they leave nothing of the context for the caption, or the
                engine cannot answer it.
        """
        self._require_supported(question)
        self._require_no_special_tokens(question)
        opened: Opened | None = None
        if question.image is not None:
            # The length of the prompt may depend on the size of the image; that of a small one is a lower bound.
            _require_space(*self._rendered_lengths(question, self._captioner.blank))
            try:
                opened = await self._opened(question, question.image)
            except RowError as error:
                raise refused("invalid_image", image_problem(error.kind, self._settings)) from None
        prompt_tokens, available = self._lengths(question, opened)
        _require_space(prompt_tokens, available)
        longest = self._settings.max_new_tokens
        requests = self._requests(question, min(question.max_tokens or longest, longest, available))
        try:
            return self._job(question, opened, requests, prompt_tokens)
        except DeviceError:
            raise _too_large(requests[0], prompt_tokens) from None

    async def _opened(self, question: Question, content: bytes) -> Opened:
        """Decode and preprocess an image in a thread.

        Large images are decoded one at a time, in a thread of their own: while they wait, other images do not.

        Raises:
            RowError: the image is damaged, or exceeds a limit.
        """
        loop = get_running_loop()
        opened = await loop.run_in_executor(self._image_threads, self._open_unless_large, question, content)
        if opened is not None:
            return opened
        return await loop.run_in_executor(self._large_image_thread, self._open, question, content)

    def _open_unless_large(self, question: Question, content: bytes) -> Opened | None:
        return None if is_large_image(content, self._settings) else self._open(question, content)

    def _require_no_special_tokens(self, question: Question) -> None:
        for text in Conversation.of(question.prompt).texts:
            special = [token for token in self._captioner.processor.tokenizer.all_special_tokens if token in text]
            if special:
                raise refused("invalid_prompt", f"the text contains the special token {special[0]!r}; remove it")
            if any(token in text for token in self._captioner.vision_tokens):
                raise refused("invalid_prompt", "the text contains an image token; remove it")

    def _rendered_lengths(self, question: Question, image: ImageInputs | None) -> tuple[int, int]:
        """As ``_lengths``, with an image preprocessed by the captioner.

        Raises:
            RefusedError: the model's template does not accept the turns.
        """
        try:
            prompt = self._captioner.prompt(question.prompt, image)
        except (TemplateError, ModelError, ConfigError):
            message = "the model's chat template does not accept these messages; send turns of 'user' and 'assistant'"
            raise refused("invalid_prompt", f"{message} that alternate, with the image in a turn of 'user'") from None
        return len(prompt), self._captioner.longest_caption(prompt)

    def _requests(self, question: Question, length: int) -> list[Request]:
        """One request a caption, without the image.

        Args:
            question: the question.
            length: most tokens of a caption.
        """
        own = self._settings.views
        count = own.count if question.views is None or question.image is None else question.views
        decoding = Decoding(
            temperature=question.temperature,
            top_p=question.top_p,
            top_k=question.top_k,
            max_new_tokens=length,
            stop=question.stop,
            views=Views(count=count, shift=own.shift),
        )
        # The noise depends on the image and the text but not on the model, so before and after share it.
        picture = "" if question.image is None else hashlib.sha256(question.image).hexdigest()
        sample = f"{picture}/{question.prompt}"
        return [
            Request(
                uuid.uuid4().hex,
                None,
                question.prompt,
                # Without an image the caption follows the second path's prompt, which has none.
                1.0 if question.image is None else question.ratio,
                noise_key(question.seed, 0, sample, f"choice-{index}"),
                decoding,
                alternatives=question.alternatives,
                presence_penalty=question.presence_penalty,
                frequency_penalty=question.frequency_penalty,
            )
            for index in range(question.choices)
        ]


def _require_space(prompt_tokens: int, available: int) -> None:
    """Check that something of the context is left for the caption.

    Raises:
        RefusedError: nothing is.
    """
    if available < 1:
        message = f"image and text take {prompt_tokens} tokens, which leaves nothing for the caption"
        raise refused("context_length_exceeded", message)


def _too_large(request: Request, prompt_tokens: int) -> RefusedError:
    length = request.decoding.max_new_tokens
    message = f"not enough memory for {prompt_tokens} tokens of image and text and {length} of the caption"
    return refused("context_length_exceeded", message)
