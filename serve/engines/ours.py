"""The decoding in one model replica: requests of many clients, decoded together in one loop.

A plain class without Ray. Callers await a future, so decoding never blocks their event loop.
"""

from __future__ import annotations

import hashlib
import uuid
from asyncio import gather, get_running_loop, wrap_future
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from jinja2 import TemplateError

from jsfree.config import Decoding, RunConfig, Views
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.loop import DecodingLoop
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.errors import ConfigError, DecodingError, DeviceError, ModelError, NoTokenError, RowError, ServeError
from jsfree.models.families.base import ImageInputs
from jsfree.models.loading import load_captioner
from jsfree.models.prompts import Conversation
from serve.engines import streams
from serve.engines.texts import TokenTexts
from serve.http.protocol import Answer, Choice, Part, Question, Reason, Refusal, Started
from serve.http.security import decoded_image, image_problem

IMAGE_THREADS = 2
"""Threads that decode images, each of up to ``max_pixels`` pixels."""


@dataclass(eq=False)
class _RefusedError(Exception):
    """A question that is not answered."""

    refusal: Refusal


def _refused(reason: Reason, message: str) -> _RefusedError:
    return _RefusedError(Refusal(reason, message))


@dataclass(frozen=True)
class _Decoder:
    """An engine and the loop that steps it."""

    engine: DualPathEngine
    loop: DecodingLoop


@dataclass(frozen=True)
class _Job:
    """A question as requests for a decoder."""

    requests: list[Request]
    prompt_tokens: int
    decoder: _Decoder


class Engine:
    """A captioner with its decoding loops.

    Most questions need one forward row a caption. Those with a hallucination ratio, with more views than the server's
    own number or without an image need others. They are decoded by an engine of their own, which has memory for a few
    captions, laid out when the first of them arrives, so that the others pay nothing for it.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(self, config: RunConfig, ref: str, device: str = "cpu") -> None:
        model, settings = config.captioner, config.serve
        self._settings = settings
        self._captioner = load_captioner(ref, device, model.dtype, model.preprocessing, model.device_map, config.models)
        self._token_texts = TokenTexts(self._captioner)
        self._admitted = 0
        """Number of captions that are being decoded or wait for it."""
        plain = self._engine(Workload.for_serving(settings.slots, settings.views.count))
        self._warm_up(plain, config.prompt)
        views = max(settings.views.count, settings.max_views)
        dual_path = self._engine(Workload.for_serving(settings.dual_path_slots, views, dual_path=True))
        self._plain, self._dual_path = (
            _Decoder(engine, DecodingLoop(engine, settings.stall_s)) for engine in (plain, dual_path)
        )
        self._image_threads = ThreadPoolExecutor(IMAGE_THREADS, "open-image")

    def _engine(self, workload: Workload) -> DualPathEngine:
        return DualPathEngine(self._captioner, workload, kv_cache_gib=self._settings.kv_cache_gib)

    async def caption(self, question: Question) -> Answer | Refusal:
        """Caption an image; cancelling the call frees its slots."""
        try:
            with self._admission(question):
                job = await self._job(question)
                with self._refusing(job):
                    futures = job.decoder.loop.submit(job.requests)
                    captions = await gather(*(wrap_future(future) for future in futures))
        except _RefusedError as refused:
            return refused.refusal
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
                job = await self._job(question)
                yield Started(job.prompt_tokens)
                with self._refusing(job):
                    parts = streams.stream(job.decoder.loop, job.requests, self._captioner, self._token_texts)
                    async with aclosing(parts):
                        async for part in parts:
                            yield part
        except _RefusedError as refused:
            yield refused.refusal

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

    def _problem(self) -> str | None:
        return self._plain.loop.problem() or self._dual_path.loop.problem()

    def close(self) -> None:
        """End the loops; requests in progress are refused."""
        self._plain.loop.close()
        self._dual_path.loop.close()
        self._image_threads.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _admission(self, question: Question) -> Iterator[None]:
        """Count a question's captions while the block runs.

        Raises:
            _RefusedError: too many are being decoded.
        """
        if self._admitted + question.choices > self._settings.slots + self._settings.max_waiting:
            raise _refused("overloaded", "too many captions are being decoded; try again soon")
        self._admitted += question.choices
        try:
            yield
        finally:
            self._admitted -= question.choices

    @contextmanager
    def _refusing(self, job: _Job) -> Iterator[None]:
        """Turn errors of decoding into refusals.

        Raises:
            _RefusedError: an error of decoding was raised.
        """
        try:
            yield
        except DeviceError:
            raise self._too_large(job.requests[0], job.prompt_tokens) from None
        except NoTokenError:
            raise _refused("failed", "the model generates no token for this image and text") from None
        except DecodingError:
            if job.decoder.loop.problem() is None:
                raise _refused("overloaded", "not enough memory for this request now; try again soon") from None
            raise _refused("unavailable", "the model has stopped and is being replaced; try again soon") from None

    def _too_large(self, request: Request, prompt_tokens: int) -> _RefusedError:
        length = request.decoding.max_new_tokens
        message = f"not enough memory for {prompt_tokens} tokens of image and text and {length} of the caption"
        return _refused("context_length_exceeded", message)

    async def _job(self, question: Question) -> _Job:
        """The requests of a question.

        Raises:
            _RefusedError: its text or its image is invalid, or they leave nothing of the context for the caption.
        """
        self._require_no_special_tokens(question)
        if question.image is None:
            image, (prompt_tokens, available) = None, self._lengths(question, None)
        else:
            # The length of the prompt may depend on the size of the image; that of a small one is a lower bound.
            self._lengths(question, self._captioner.blank)
            try:
                image = await get_running_loop().run_in_executor(self._image_threads, self._inputs, question.image)
            except RowError as error:
                raise _refused("invalid_image", image_problem(error.kind, self._settings)) from None
            prompt_tokens, available = self._lengths(question, image)
        longest = self._settings.max_new_tokens
        length = min(question.max_tokens or longest, longest, available)
        requests = self._requests(question, image, length)
        decoder = self._dual_path if self._needs_dual_path(question) else self._plain
        try:
            decoder.engine.check_fits(requests[0])
        except DeviceError:
            raise self._too_large(requests[0], prompt_tokens) from None
        return _Job(requests, prompt_tokens, decoder)

    def _require_no_special_tokens(self, question: Question) -> None:
        for text in Conversation.of(question.prompt).texts:
            special = [token for token in self._captioner.processor.tokenizer.all_special_tokens if token in text]
            if special:
                raise _refused("invalid_prompt", f"the text contains the special token {special[0]!r}; remove it")
            if any(token in text for token in self._captioner.vision_tokens):
                raise _refused("invalid_prompt", "the text contains an image token; remove it")

    def _lengths(self, question: Question, image: ImageInputs | None) -> tuple[int, int]:
        """Tokens of the prompt, and most tokens of a caption after it.

        Raises:
            _RefusedError: there is none, or the model's template does not accept the turns.
        """
        try:
            prompt = self._captioner.prompt(question.prompt, image)
        except (TemplateError, ModelError, ConfigError):
            message = "the model's chat template does not accept these messages; send turns of 'user' and 'assistant'"
            raise _refused("invalid_prompt", f"{message} that alternate, with the image in a turn of 'user'") from None
        available = self._captioner.longest_caption(prompt)
        if available < 1:
            message = f"image and text take {len(prompt)} tokens, which leaves nothing for the caption"
            raise _refused("context_length_exceeded", message)
        return len(prompt), available

    def _needs_dual_path(self, question: Question) -> bool:
        views = question.views or self._settings.views.count
        return question.image is None or question.ratio > 0 or views > self._settings.views.count

    def _requests(self, question: Question, image: ImageInputs | None, length: int) -> list[Request]:
        """One request a caption."""
        own = self._settings.views
        decoding = Decoding(
            temperature=question.temperature,
            top_p=question.top_p,
            top_k=question.top_k,
            max_new_tokens=length,
            stop=question.stop,
            views=own if question.views is None or image is None else Views(count=question.views, shift=own.shift),
        )
        # The noise depends on the image and the text but not on the model, so before and after share it.
        picture = "" if question.image is None else hashlib.sha256(question.image).hexdigest()
        sample = f"{picture}/{question.prompt}"
        return [
            Request(
                uuid.uuid4().hex,
                image,
                question.prompt,
                # Without an image the caption follows the second path's prompt, which has none.
                1.0 if image is None else question.ratio,
                noise_key(question.seed, 0, sample, f"choice-{index}"),
                decoding,
                alternatives=question.alternatives,
                presence_penalty=question.presence_penalty,
                frequency_penalty=question.frequency_penalty,
            )
            for index in range(question.choices)
        ]

    def _warm_up(self, decoder: DualPathEngine, prompt: str) -> None:
        """Decode once: verifies that the replica can decode, and compiles kernels before the first request."""
        settings = self._settings
        longest = self._captioner.longest_caption(self._captioner.prompt(prompt, self._captioner.blank))
        length = min(settings.max_new_tokens, longest)
        decoding = Decoding(temperature=0, max_new_tokens=length, views=settings.views)
        decoder.submit(Request("warm-up", self._captioner.blank, prompt, 0.0, 0, decoding))
        for _ in range(2):
            decoder.step()
        decoder.cancel("warm-up")

    def _inputs(self, content: bytes) -> ImageInputs:
        with decoded_image(content, self._settings) as image:
            return self._captioner.inputs(image)
