"""The decoding in one model replica: requests of many clients, decoded together in one loop.

A plain class without Ray. Callers await a future, so decoding never blocks their event loop.
"""

from __future__ import annotations

import hashlib
import uuid
from asyncio import gather, get_running_loop, wrap_future
from concurrent.futures import ThreadPoolExecutor

from jsfree.config import Decoding, RunConfig
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.loop import DecodingLoop
from jsfree.decoding.requests import Caption, Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.errors import DecodingError, DeviceError, NoTokenError, RowError, ServeError
from jsfree.images.decoding import load_image
from jsfree.models.families.base import ImageInputs
from jsfree.models.loading import load_captioner
from serve.http.protocol import Answer, Choice, Question, Refusal
from serve.http.security import image_limits, image_problem

IMAGE_THREADS = 2
"""Threads that decode images, each of up to ``max_pixels`` pixels."""


class Engine:
    """A captioner with its decoding loop.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(self, config: RunConfig, ref: str, device: str = "cpu") -> None:
        model = config.captioner
        self._settings = config.serve
        self._captioner = load_captioner(ref, device, model.dtype, model.preprocessing, model.device_map, config.models)
        self._admitted = 0
        """Number of captions that are being decoded or wait for it."""
        workload = Workload.for_serving(config.serve.slots, config.serve.views.count)
        decoder = DualPathEngine(self._captioner, workload, kv_cache_gib=config.serve.kv_cache_gib)
        self._warm_up(decoder, config.prompt)
        self._decoder = decoder
        self._loop = DecodingLoop(decoder, config.serve.stall_s)
        self._image_threads = ThreadPoolExecutor(IMAGE_THREADS, "open-image")

    async def caption(self, question: Question) -> Answer | Refusal:
        """Caption an image; cancelling the call frees its slots."""
        special = [
            token for token in self._captioner.processor.tokenizer.all_special_tokens if token in question.prompt
        ]
        if special:
            return Refusal("invalid_prompt", f"the text contains the special token {special[0]!r}; remove it")
        if any(token in question.prompt for token in self._captioner.vision_tokens):
            return Refusal("invalid_prompt", "the text contains an image token; remove it")
        if self._admitted + question.choices > self._settings.slots + self._settings.max_waiting:
            return Refusal("overloaded", "too many captions are being decoded; try again soon")
        self._admitted += question.choices
        try:
            return await self._answer(question)
        finally:
            self._admitted -= question.choices

    async def _answer(self, question: Question) -> Answer | Refusal:
        """Caption an image within the model's context."""
        # The length of the prompt may depend on the size of the image; that of a small one is a lower bound.
        refusal = self._refuse_length(question, self._captioner.blank)
        if refusal is not None:
            return refusal
        try:
            image = await get_running_loop().run_in_executor(self._image_threads, self._inputs, question.image)
        except RowError as error:
            return Refusal("invalid_image", image_problem(error.kind, self._settings))
        refusal = self._refuse_length(question, image)
        if refusal is not None:
            return refusal
        prompt = self._captioner.prompt(question.prompt, image)
        prompt_tokens = len(prompt)
        length = min(question.max_tokens or self._settings.max_new_tokens, self._captioner.longest_caption(prompt))
        try:
            captions = await self._decoded(question, image, length)
        except DeviceError:
            message = f"not enough memory for {prompt_tokens} tokens of image and text and {length} of the caption"
            return Refusal("context_length_exceeded", message)
        except NoTokenError:
            return Refusal("failed", "the model generates no token for this image and text")
        except DecodingError:
            if self._loop.problem() is None:
                return Refusal("overloaded", "not enough memory for this request now; try again soon")
            return Refusal("unavailable", "the model has stopped and is being replaced; try again soon")
        return Answer(tuple(Choice(each.text, each.finish, len(each.token_ids)) for each in captions), prompt_tokens)

    def check(self) -> None:
        """Check that decoding makes progress.

        Raises:
            ServeError: it has ended, or makes no progress.
        """
        problem = self._loop.problem()
        if problem is not None:
            raise ServeError(problem)

    async def healthy(self) -> bool:
        """Whether decoding makes progress."""
        return self._loop.problem() is None

    def close(self) -> None:
        """End the loop; requests in progress are refused."""
        self._loop.close()
        self._image_threads.shutdown(wait=False, cancel_futures=True)

    def _refuse_length(self, question: Question, image: ImageInputs) -> Refusal | None:
        """The refusal of a question that leaves too little of the context for its caption."""
        prompt = self._captioner.prompt(question.prompt, image)
        available = self._captioner.longest_caption(prompt)
        if available >= (question.max_tokens or 1):
            return None
        message = f"image and text take {len(prompt)} tokens, which leaves {max(available, 0)} for the caption"
        return Refusal("context_length_exceeded", message)

    async def _decoded(self, question: Question, image: ImageInputs, length: int) -> list[Caption]:
        decoding = Decoding(
            temperature=question.temperature,
            top_p=question.top_p,
            max_new_tokens=length,
            stop=question.stop,
            views=self._settings.views,
        )
        # The noise depends on the image and the text but not on the model, so before and after share it.
        sample = f"{hashlib.sha256(question.image).hexdigest()}/{question.prompt}"
        keys = [noise_key(question.seed, 0, sample, f"choice-{index}") for index in range(question.choices)]
        requests = [Request(uuid.uuid4().hex, image, question.prompt, 0.0, key, decoding) for key in keys]
        self._decoder.check_fits(requests[0])
        return await gather(*(wrap_future(future) for future in self._loop.submit(requests)))

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
        reference = {"id": "sent", "uri": None, "bytes": content, "sha256": None}
        image = load_image(reference, image_limits(self._settings)).image  # type: ignore[arg-type]
        return self._captioner.inputs(image)
