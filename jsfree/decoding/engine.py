"""The dual-path engine: captions in flight, each in a slot that is refilled as soon as its caption ends.

A step is one forward pass over a fixed number of rows: one row a slot for the conditional path, and rows for the
second path of captions that use it (h = 0 needs no second path, h = 1 no image). An image with its prompt is prefilled
alone, once for all its captions that are decoded together; a prompt without image is prefilled once. The attended
length depends on the other captions, but only adds masked zeros to sums. So in float32 a caption does not depend on
other captions, their order or the worker (tested on CPUs).

``decode`` decodes a batch; ``submit``, ``step`` and ``cancel`` let requests come and go between steps.

Shape suffixes: B captions, N numbers of noise a token, R rows, V vocabulary.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from jsfree.config import Compiling
from jsfree.decoding import attention, mixing, sampling
from jsfree.decoding.capacity import Capacity
from jsfree.decoding.forward import IDLE, Forward, Row
from jsfree.decoding.memory import kv_budget, kv_limit, kv_size
from jsfree.decoding.prefill import Prefill
from jsfree.decoding.prefixes import ActiveCaption, ImagePrefixes, TextPrefixes, first_free
from jsfree.decoding.requests import Caption, Request, StepResult, completed_caption, no_memory_error, no_token_error
from jsfree.decoding.workload import Layout, Workload
from jsfree.errors import DeviceError
from jsfree.gpus import out_of_memory
from jsfree.models.loading import Captioner

log = logging.getLogger(__name__)
LOOKAHEAD = 2
"""Waiting requests, as a multiple of the slots, that may overtake one for which there is no place."""


class DualPathEngine:
    """Decodes captions by Eq. 3, or by another mixing of two paths."""

    def __init__(
        self,
        captioner: Captioner,
        workload: Workload,
        *,
        kv_cache_gib: float | None = None,
        compiling: Compiling = "none",
    ) -> None:
        """Prepare; memory for keys and values is laid out when the first request arrives.

        Args:
            captioner: the model; its language model is set to attend through ``attention.py``.
            workload: the captions that are decoded together.
            kv_cache_gib: memory for keys and values; None takes a share of the free memory.
            compiling: how a step is run (``generate.compile``).
        """
        attention.install(captioner)
        self.captioner = captioner
        self.mixing = workload.mixing
        self.layout: Layout | None = None
        self.reset_counts()
        self._workload = workload
        self._kv_cache_gib = kv_cache_gib
        self._capacity = Capacity(workload, kv_size(captioner), kv_limit(captioner, kv_cache_gib))
        self._compiling = compiling
        self._prefill = Prefill(captioner)
        self._queue: deque[Request] = deque()
        self._slots: list[ActiveCaption | None] = []
        self._second_rows: list[int | None] = []
        self._forward: Forward | None
        self._release_layout()

    def reset_counts(self) -> None:
        """Reset the counts of drawn tokens, of forward passes, and of slots that held a caption in them."""
        self.tokens = self.forwards = 0
        self._used_slots = self._offered_slots = 0

    @property
    def active(self) -> int:
        """Captions waiting or in flight."""
        return len(self._queue) + len(self._in_flight())

    @property
    def queue_space(self) -> int:
        """Requests that may be submitted before the queue is full."""
        return LOOKAHEAD * self._workload.slots - len(self._queue)

    @property
    def utilisation(self) -> float:
        """Share of the slots that held a caption, over all forward passes."""
        return self._used_slots / self._offered_slots if self._offered_slots else 0.0

    def submit(self, request: Request) -> None:
        """Queue a request; it starts at a later step.

        Raises:
            DeviceError: it could never fit into memory. A request that does not fit at the moment waits.
            ValueError: it needs the second path, which this engine's workload does not have.
        """
        self.check_fits(request)
        if self.mixing.uses_second(request.ratio) and not self._workload.dual_path_share:
            raise ValueError(f"request {request.request_id!r} has h = {request.ratio:g}; the engine has no second path")
        self._queue.append(request)

    def check_fits(self, request: Request) -> None:
        """Check that a request's keys and values could fit into memory, alone if necessary. Thread-safe.

        Raises:
            DeviceError: they exceed the configured size, or the device's memory.
        """
        self._capacity.check_limit(self._prefill.requirement(request))

    def cancel(self, request_id: str) -> bool:
        """Drop a request, waiting or in flight; False if there is none with that id."""
        waiting = [request for request in self._queue if request.request_id == request_id]
        for request in waiting:
            self._queue.remove(request)
        slots = [slot for slot, caption in self._in_flight() if caption.request.request_id == request_id]
        for slot in slots:
            self._free_slot(slot)
        return bool(waiting or slots)

    @torch.inference_mode()
    def step(self) -> StepResult:
        """Decode one token of every caption in flight.

        Free slots are refilled within the step, so that none is idle while a request waits. If the device runs out of
        memory, captions restart in half as many slots for a while (``capacity.py``).

        Raises:
            DeviceError: for some time there has not been enough memory for a single caption.
        """
        result, ran_out = StepResult(), False
        try:
            self._step(result)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            ran_out = True  # handled below: here the traceback still references the step's tensors
        if ran_out:
            self._halve_slots()
        elif result.drawn:
            self._capacity.reset_patience()
        self.tokens += len(result.drawn)
        return result

    def _step(self, result: StepResult) -> None:
        slots = [slot for slot, _ in self._in_flight()]
        slots += self._fill_slots(result)
        while slots:
            for slot, token in zip(slots, self._sample(slots), strict=True):
                self._append_token(slot, token, result)
            slots = self._fill_slots(result)
        self._forward_step()

    def _halve_slots(self) -> None:
        """Free all memory and lay out half the slots next; captions in flight return to the front of the queue."""
        slots = len(self._slots) or self._capacity.slots
        if slots == 1 and not self._capacity.wait_for_memory():
            raise DeviceError(
                "the device has too little memory to decode one caption",
                "stop other processes on it, set 'generate.kv_cache_gib' lower, or take one with more memory",
            )
        fewer = max(1, slots // 2)
        if fewer < slots:
            log.warning("out of memory with %d captions together; continuing with %d", slots, fewer)
        self._queue.extendleft(caption.request for _, caption in reversed(self._in_flight()))
        self._capacity.reduce_to(fewer)
        self._release_layout()

    def _release_layout(self) -> None:
        """Free all memory that is laid out."""
        self.layout = self._forward = None
        self._slots, self._second_rows = [], []
        self._draining = False
        self._images, self._texts = ImagePrefixes(0, 0), TextPrefixes(0)
        self._logits_RV = torch.zeros(0)

    def decode(self, requests: Iterable[Request]) -> list[Caption]:
        """Decode requests with distinct ids; captions in the order of the requests.

        Requests are drawn from the iterable as slots become free, so that images can be read while others are decoded.

        Raises:
            DecodingError: a request cannot be decoded.
        """
        order: list[str] = []
        captions: dict[str, Caption] = {}

        def step() -> None:
            result = self.step()
            captions.update((caption.request_id, caption) for caption in result.finished)
            for _, error in result.failed:
                raise error

        try:
            for request in requests:
                order.append(request.request_id)
                self.submit(request)
                while self.queue_space <= 0:
                    step()
            while self.active:
                step()
        except BaseException:
            for request_id in order:  # the next batch must not decode the rest of this one
                self.cancel(request_id)
            raise
        return [captions[request_id] for request_id in order]

    def _fill_slots(self, result: StepResult) -> list[int]:
        """Start waiting captions in free slots; the slots that were filled."""
        filled: list[int] = []
        self._update_layout(result)
        while self._queue and not self._draining and (slot := first_free(self._slots)) is not None:
            request = next(self._startable(), None)
            if request is None:
                break
            self._slots[slot] = self._start(request, slot)
            self._queue.remove(request)  # only now: starting may run out of memory
            filled.append(slot)
        return filled

    def _update_layout(self, result: StepResult) -> None:
        """Lay memory out, once no caption is in flight, if the next request needs it or to try more slots."""
        if not self._queue:
            return
        if self.layout is not None and not self._draining:
            if self._capacity.retry_due:
                budget = kv_budget(self.captioner, self._kv_cache_gib, self.layout.bytes)
                requirements = [self._prefill.requirement(request) for request in self._queue]
                self._draining = self._capacity.try_more(self.layout.slots, requirements, budget)
            if not self._draining and self.layout.requirement.covers(self._prefill.requirement(self._queue[0])):
                return
        if any(self._slots):
            return
        previous = self.layout.requirement if self.layout is not None else None
        self._release_layout()
        budget = kv_budget(self.captioner, self._kv_cache_gib)
        requirements = [self._prefill.requirement(request) for request in self._queue]
        fits = [self._capacity.fits(requirement, budget) for requirement in requirements]
        if not any(fits):
            self._wait_for_memory(result)
            return
        order = sorted(range(len(fits)), key=lambda index: not fits[index])  # requests that fit come first
        self._queue = deque(self._queue[index] for index in order)
        fitting = [requirements[index] for index in order if fits[index]]
        self._allocate(self._capacity.layout(fitting, previous, budget))

    def _allocate(self, layout: Layout) -> None:
        """Allocate the memory of a layout."""
        self.layout = layout
        self._forward = Forward(self.captioner, layout.cache, self._compiling)
        self._logits_RV = torch.zeros(layout.cache.rows, self.captioner.vocabulary, device=self.captioner.device)
        self._slots = [None] * layout.slots
        self._second_rows = [None] * layout.second_rows
        self._images = ImagePrefixes(layout.images, self._workload.captions_per_image)
        self._texts = TextPrefixes(layout.cache.text_prefixes)

    def _wait_for_memory(self, result: StepResult) -> None:
        """Pause because no waiting request fits into the free memory; after some time all of them fail."""
        if not self._capacity.wait_for_memory():
            while self._queue:
                request = self._queue.popleft()
                result.failed.append((request.request_id, no_memory_error(request)))

    def _startable(self) -> Iterator[Request]:
        """Waiting requests that can start now, in the order of their submission.

        No request overtakes one that is too large for the layout or waits for a text prefix: it might wait for ever.
        """
        assert self.layout is not None
        for request in islice(self._queue, LOOKAHEAD * self._workload.slots):
            if not self.layout.requirement.covers(self._prefill.requirement(request)):
                return
            is_dual = self.mixing.uses_second(request.ratio)
            if is_dual and not self._workload.second_image and self._texts.find(request.prompt) is None:
                return
            has_second_row = not is_dual or first_free(self._second_rows) is not None
            if has_second_row and (
                not self._workload.uses_image(request.ratio) or self._find_image_prefix(request) is not None
            ):
                yield request

    def _find_image_prefix(self, request: Request) -> int | None:
        return self._images.find(request, self._queue, force=not any(self._slots))

    def _start(self, request: Request, slot: int) -> ActiveCaption:
        """Prefill a caption's prefixes and set the logits of its first token."""
        assert self._forward is not None
        cache = self._forward.cache
        caption = ActiveCaption(request, sampling.NoiseStream(request.noise_key, self.captioner.vocabulary))
        image = self._find_image_prefix(request) if self._workload.uses_image(request.ratio) else None
        if image is not None:
            caption.image_prefix = image
            prefix = self._images.load(request, image, self._prefill, cache)
            caption.reader = prefix.readers.index(None)
            prefix.readers[caption.reader] = slot
            self._logits_RV[slot] = prefix.logits_V
        if self.mixing.uses_second(request.ratio):
            number = self._second_rows.index(None)
            self._second_rows[number] = slot
            caption.second_row = len(self._slots) + number
            if self._workload.second_image:
                assert image is not None
                logits_V = self._images.load_noised(image, self.mixing.noise_step, self._prefill, cache)
                caption.second_prefix = len(self._images) + image
            else:
                prefilled = self._prefill.text_prefix(request.prompt)
                logits_V, text = prefilled.logits_V, self._texts.find(request.prompt)
                assert text is not None
                caption.second_prefix = text
                if self._texts.acquire(text, request.prompt):
                    cache.store_text_prefix(text, prefilled.cache)
            self._logits_RV[caption.second_row] = logits_V
        return caption

    def _sample(self, slots: Sequence[int]) -> list[int]:
        """Sample the next token of the captions in some slots."""
        captions = [self._caption(slot) for slot in slots]
        noise_BN = torch.from_numpy(np.stack([caption.noise.next_token() for caption in captions]))
        greedy = [caption.request.decoding.temperature == 0 for caption in captions]
        probs_BV = self._probs(slots, captions)
        tokens: list[int] = sampling.sample_tokens(probs_BV, noise_BN.to(self.captioner.device), greedy).tolist()
        return tokens

    def _probs(self, slots: Sequence[int], captions: Sequence[ActiveCaption]) -> torch.Tensor:
        """Distribution of the next token of the captions in some slots, (B, V)."""
        requests = [caption.request for caption in captions]
        settings = mixing.BatchSettings.of(
            [request.decoding for request in requests],
            [request.ratio for request in requests],
            [len(caption.tokens) for caption in captions],
            self.captioner.device,
        )
        # A caption with h = 1 has no conditional path: its second row stands in for it.
        first_rows = [
            slot if self.mixing.uses_conditional(caption.request.ratio) else caption.second_row or 0
            for slot, caption in zip(slots, captions, strict=True)
        ]
        second_rows = [caption.second_row for caption in captions]
        return self.mixing.next_token_probs(
            self._logits_RV, first_rows, second_rows, settings, self.captioner.suppressed_ids
        )

    def _append_token(self, slot: int, token: int, result: StepResult) -> None:
        """Append a token to a caption; a finished or failed caption leaves its slot."""
        caption = self._caption(slot)
        request = caption.request
        if token == sampling.NO_TOKEN:
            result.failed.append((request.request_id, no_token_error(request, len(caption.tokens))))
            self._free_slot(slot)
            if self._forward is not None:
                self._forward.cache.clear_rows([row for row in (slot, caption.second_row) if row is not None])
            return
        caption.tokens.append(token)
        result.drawn.append((request.request_id, token))
        completed = completed_caption(self.captioner, request, caption.tokens)
        if completed is not None:
            result.finished.append(completed)
            self._free_slot(slot)

    def _forward_step(self) -> None:
        """Feed the last token of every caption in flight to the model."""
        if self._forward is None or not any(self._slots):
            return
        self._used_slots += len(self._in_flight())
        self._offered_slots += len(self._slots)
        self.forwards += 1
        rows = [IDLE] * (len(self._slots) + len(self._second_rows))
        for slot, caption in self._in_flight():
            own_length, token = len(caption.tokens) - 1, caption.tokens[-1]
            if self.mixing.uses_conditional(caption.request.ratio):
                rows[slot] = Row(token, own_length, caption.image_prefix, caption.reader)
            if caption.second_row is not None:
                rows[caption.second_row] = Row(token, own_length, caption.second_prefix, caption.reader)
        self._logits_RV = self._forward(rows)

    def _free_slot(self, slot: int) -> None:
        caption = self._caption(slot)
        self._slots[slot] = None
        if caption.image_prefix is not None:
            self._images[caption.image_prefix].readers[caption.reader] = None
        if caption.second_row is not None:
            self._second_rows[caption.second_row - len(self._slots)] = None
        if caption.second_prefix is not None and not self._workload.second_image:
            self._texts.release(caption.second_prefix)

    def _in_flight(self) -> list[tuple[int, ActiveCaption]]:
        """Slots that hold a caption, with their captions."""
        return [(slot, caption) for slot, caption in enumerate(self._slots) if caption is not None]

    def _caption(self, slot: int) -> ActiveCaption:
        caption = self._slots[slot]
        assert caption is not None
        return caption
