"""The decoding in one model replica: requests of many clients, decoded together in one loop.

A plain class without Ray. Callers await a future, so decoding never blocks their event loop.
"""

from __future__ import annotations

import hashlib
import uuid
from asyncio import gather, get_running_loop, wrap_future
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image

from jsfree.config import Decoding, RunConfig
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.loop import DecodingLoop
from jsfree.decoding.requests import Caption, Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.errors import DecodingError, DeviceError, NoTokenError, RowError, ServeError
from jsfree.images.decoding import load_image
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
        prompt_tokens = self._prompt_tokens(question.prompt)
        if isinstance(prompt_tokens, Refusal):
            return prompt_tokens
        available = self._captioner.model.config.get_text_config().max_position_embeddings - prompt_tokens
        if available < (question.max_tokens or 1):
            message = f"image and text take {prompt_tokens} tokens, which leaves {max(available, 0)} for the caption"
            return Refusal("context_length_exceeded", message)
        if self._admitted + question.choices > self._settings.slots + self._settings.max_waiting:
            return Refusal("overloaded", "too many captions are being decoded; try again soon")
        length = min(question.max_tokens or self._settings.max_new_tokens, available)
        self._admitted += question.choices
        try:
            captions = await self._decoded(question, length)
        except DeviceError:
            message = f"not enough memory for {prompt_tokens} tokens of image and text and {length} of the caption"
            return Refusal("context_length_exceeded", message)
        except RowError as error:
            return Refusal("invalid_image", image_problem(error.kind, self._settings))
        except NoTokenError:
            return Refusal("failed", "the model generates no token for this image and text")
        except DecodingError:
            if self._loop.problem() is None:
                return Refusal("overloaded", "not enough memory for this request now; try again soon")
            return Refusal("unavailable", "the model has stopped and is being replaced; try again soon")
        finally:
            self._admitted -= question.choices
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

    async def _decoded(self, question: Question, length: int) -> list[Caption]:
        pixels = await get_running_loop().run_in_executor(self._image_threads, self._pixels, question.image)
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
        requests = [Request(uuid.uuid4().hex, pixels, question.prompt, 0.0, key, decoding) for key in keys]
        self._decoder.check_fits(requests[0])
        return await gather(*(wrap_future(future) for future in self._loop.submit(requests)))

    def _warm_up(self, decoder: DualPathEngine, prompt: str) -> None:
        """Decode once: verifies that the replica can decode, and compiles kernels before the first request."""
        pixels = self._captioner.pixels(Image.new("RGB", (64, 64)))
        settings = self._settings
        decoding = Decoding(temperature=0, max_new_tokens=settings.max_new_tokens, views=settings.views)
        decoder.submit(Request("warm-up", pixels, prompt, 0.0, 0, decoding))
        for _ in range(2):
            decoder.step()
        decoder.cancel("warm-up")

    def _pixels(self, content: bytes) -> torch.Tensor:
        reference = {"id": "sent", "uri": None, "bytes": content, "sha256": None}
        image = load_image(reference, image_limits(self._settings)).image  # type: ignore[arg-type]
        return self._captioner.pixels(image)

    def _prompt_tokens(self, text: str) -> int | Refusal:
        """Number of tokens of text and image; a text that contains special tokens is refused."""
        special = [token for token in self._captioner.processor.tokenizer.all_special_tokens if token in text]
        if special:
            return Refusal("invalid_prompt", f"the text contains the special token {special[0]!r}; remove it")
        ids = self._captioner.prompt_ids(text, image=True)
        if ids.count(self._captioner.model.config.image_token_index) != self._captioner.image_tokens:
            return Refusal("invalid_prompt", "the text contains an image token; remove it")
        return len(ids)
