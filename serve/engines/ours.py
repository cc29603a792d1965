"""The engine that decodes in this process: requests of many clients, decoded together in one loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from jsfree.config import Decoding, RunConfig
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.loop import DecodingLoop
from jsfree.decoding.requests import Request
from jsfree.decoding.workload import Workload
from jsfree.models.families.base import ImageInputs
from jsfree.models.loading import load_captioner
from serve.engines.base import CaptionEngine, Job
from serve.http.protocol import Question
from serve.http.security import decoded_image


@dataclass(frozen=True)
class _Decoder:
    """An engine and the loop that steps it."""

    engine: DualPathEngine
    loop: DecodingLoop


class Engine(CaptionEngine[ImageInputs]):
    """A captioner with its decoding loops.

    Most questions need one forward row a caption. Those with a hallucination ratio, with more views than the server's
    own number or without an image need others. They are decoded by an engine of their own, which has memory for a few
    captions, laid out when the first of them arrives, so that the others pay nothing for it.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(self, config: RunConfig, ref: str, device: str = "cpu") -> None:
        model, settings = config.captioner, config.serve
        captioner = load_captioner(ref, device, model.dtype, model.preprocessing, model.device_map, config.models)
        super().__init__(captioner, settings)
        plain = self._engine(Workload.for_serving(settings.slots, settings.views.count))
        self._warm_up(plain, config.prompt)
        views = max(settings.views.count, settings.max_views)
        dual_path = self._engine(Workload.for_serving(settings.dual_path_slots, views, dual_path=True))
        self._plain, self._dual_path = (
            _Decoder(engine, DecodingLoop(engine, settings.stall_s)) for engine in (plain, dual_path)
        )

    def _engine(self, workload: Workload) -> DualPathEngine:
        return DualPathEngine(self._captioner, workload, kv_cache_gib=self._settings.kv_cache_gib)

    def _open(self, question: Question, content: bytes) -> ImageInputs:
        with decoded_image(content, self._settings) as image:
            return self._captioner.inputs(image)

    def _lengths(self, question: Question, opened: ImageInputs | None) -> tuple[int, int]:
        return self._rendered_lengths(question, opened)

    def _job(
        self, question: Question, opened: ImageInputs | None, requests: Sequence[Request], prompt_tokens: int
    ) -> Job:
        requests = [replace(request, image=opened) for request in requests]
        decoder = self._dual_path if self._needs_dual_path(question) else self._plain
        decoder.engine.check_fits(requests[0])
        return Job(requests, prompt_tokens, decoder.loop, partial(decoder.loop.submit, requests))

    def _loops(self) -> Sequence[DecodingLoop]:
        return self._plain.loop, self._dual_path.loop

    def _needs_dual_path(self, question: Question) -> bool:
        views = question.views or self._settings.views.count
        return question.image is None or question.ratio > 0 or views > self._settings.views.count

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
