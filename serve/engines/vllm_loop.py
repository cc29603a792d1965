"""A vLLM engine with an event loop in a thread of its own, so that callers may be in any thread or event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar

from jsfree.decoding.loop import Listener
from jsfree.decoding.requests import Caption, Request, TokenLogp, completed_caption
from jsfree.errors import DecodingError, DeviceError
from jsfree.models.loading import Captioner
from serve.engines.vllm_arguments import drawn_tokens, sampling_arguments

log = logging.getLogger(__name__)
T = TypeVar("T")


class VllmLoop:
    """Decodes captions with vLLM, which computes in a process of its own.

    Args:
        arguments: of ``vllm.AsyncEngineArgs``.
        captioner: the model, without weights.
        stall_seconds: time without a token that counts as a problem.

    Raises:
        Exception: vLLM cannot start.
    """

    def __init__(self, arguments: Mapping[str, Any], captioner: Captioner, stall_seconds: float) -> None:
        self._captioner, self._stall_seconds = captioner, stall_seconds
        self._suppressed = frozenset(captioner.suppressed_ids)
        self._running, self._last_token, self._closed = 0, time.monotonic(), False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._llm: Any = None
        try:
            self._llm = self._wait_for(_start(arguments))
        except BaseException:
            self.close()
            raise

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and caption."""
        return int(self._llm.model_config.max_model_len)

    @property
    def unfinished(self) -> int:
        """Captions that vLLM decodes, or that wait in it."""
        return int(self._llm.get_num_unfinished_requests())

    def render(self, prompt: Mapping[str, Any]) -> Any:
        """Preprocess the image of a prompt.

        Args:
            prompt: ``prompt_token_ids`` with a placeholder for the image, and ``multi_modal_data``.

        Returns:
            vLLM's input, of which ``prompt_token_ids`` has all tokens of the image.
        """
        (rendered,) = self._wait_for(self._llm.renderer.render_cmpl_async([prompt]))
        return rendered

    def submit(
        self, requests: Sequence[Request], rendered: Any, listeners: Sequence[Listener | None] | None
    ) -> list[Future[Caption]]:
        """Decode requests with the same prompt; cancelling a future aborts its request.

        Args:
            requests: the requests.
            rendered: their prompt, as of ``render``.
            listeners: for each request a function that is called in this loop's thread with its tokens but the last.

        A future raises DeviceError if vLLM refuses the request, and DecodingError if it ends.
        """
        return [
            asyncio.run_coroutine_threadsafe(self._caption(request, rendered, listener), self._loop)
            for request, listener in zip(requests, listeners or [None] * len(requests), strict=True)
        ]

    def problem(self) -> str | None:
        """Why it cannot decode; None if it can."""
        if self._closed or self._llm.errored:
            return "vLLM has ended; the replica's log has the reason"
        stalled = time.monotonic() - self._last_token if self._running else 0.0
        return f"the decoding has not advanced for {stalled:.0f} s" if stalled > self._stall_seconds else None

    def close(self) -> None:
        """End vLLM; unfinished captions fail."""
        if self._closed:
            return
        self._closed = True
        if self._llm is not None:
            self._loop.call_soon_threadsafe(self._llm.shutdown)
        self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is self._thread:  # the garbage collector may run in any thread
            return
        self._thread.join()
        self._loop.run_until_complete(_cancel_all())
        self._loop.close()

    def _wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _caption(self, request: Request, rendered: Any, listener: Listener | None) -> Caption:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        if not self._running:
            self._last_token = time.monotonic()
        self._running += 1
        try:
            caption = await self._decode(request, rendered, listener)
        except EngineDeadError as error:
            raise DecodingError("vLLM has ended") from error
        except asyncio.CancelledError:
            if self._closed:
                raise DecodingError("vLLM has ended") from None
            raise
        except VLLMClientError as error:
            log.error("vLLM has refused a request: %s", error)
            raise DeviceError(f"request {request.request_id!r}: {error}") from error
        finally:
            self._running -= 1
        if caption is None:
            raise DecodingError(f"request {request.request_id!r}: vLLM has ended it before its end")
        return caption

    async def _decode(self, request: Request, rendered: Any, listener: Listener | None) -> Caption | None:
        """The caption; None if vLLM ends it without reason."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        arguments = sampling_arguments(request, self._captioner)
        sampling = SamplingParams(**arguments, output_kind=RequestOutputKind.DELTA)
        tokens: list[int] = []
        logps: list[TokenLogp] = []
        caption: Caption | None = None
        async with aclosing(self._llm.generate(rendered, sampling, request.request_id)) as outputs:
            async for output in outputs:
                self._last_token = time.monotonic()
                (part,) = output.outputs
                for drawn in drawn_tokens(request, len(tokens), part.token_ids, part.logprobs, self._suppressed):
                    tokens.append(drawn.token)
                    logps += [] if drawn.logp is None else [drawn.logp]
                    caption = completed_caption(self._captioner, request, tokens, (), token_logps=logps)
                    if caption is not None:
                        break
                    if listener is not None:
                        listener(drawn)
                if caption is not None and not output.finished:
                    break  # at a stop string, of which vLLM does not know: closing the generator aborts the request
        return caption


async def _start(arguments: Mapping[str, Any]) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


async def _cancel_all() -> None:
    """Cancel all tasks of the running loop but this one, and wait for them."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
