"""The dual-path engine: captions in flight, each in a slot that is refilled as soon as its caption ends.

A step is one forward pass over a fixed number of rows: one row a slot and view of the image for the conditional path,
and rows for the second path of captions that use it (h = 0 needs no second path, h = 1 no image). An image with its
prompt is prefilled alone, all its views together, once for all its captions that are decoded together; a prompt without
image is prefilled once. The attended
length depends on the other captions, but only adds masked zeros to sums. So in float32 a caption does not depend on
other captions, their order or the worker (tested on CPUs).

``decode`` decodes a batch; ``submit``, ``step`` and ``cancel`` let requests come and go between steps. The engine holds
the queue and chooses memory layouts; ``batch.py`` holds the captions in flight.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import torch

from jsfree.config import Compiling
from jsfree.decoding import attention, sampling
from jsfree.decoding.batch import Batch
from jsfree.decoding.capacity import Capacity
from jsfree.decoding.memory import kv_budget, kv_limit, kv_size
from jsfree.decoding.prefill import Prefill
from jsfree.decoding.requests import (
    Caption,
    Drawn,
    Request,
    StepResult,
    check_prefix,
    check_window,
    completed_caption,
    no_memory_error,
    no_token_error,
)
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
        self.reset_counts()
        self._workload = workload
        self._kv_cache_gib = kv_cache_gib
        self._capacity = Capacity(workload, kv_size(captioner), kv_limit(captioner, kv_cache_gib))
        self._compiling = compiling
        self._prefill = Prefill(captioner)
        self._queue: deque[Request] = deque()
        self._batch: Batch | None = None
        self._draining = False

    def reset_counts(self) -> None:
        """Reset the counts of drawn tokens, of forward passes, and of slots that held a caption in them."""
        self.tokens = self.forwards = 0
        self._used_slots = self._offered_slots = 0

    @property
    def layout(self) -> Layout | None:
        """The memory that is laid out; None before the first request."""
        return None if self._batch is None else self._batch.layout

    @property
    def active(self) -> int:
        """Captions waiting or in flight."""
        return len(self._queue) + (0 if self._batch is None else len(self._batch.in_flight()))

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
            DecodingError: image, prompt and caption exceed the model's sliding window.
            ValueError: it needs the second path or more views, which this engine's workload does not have, or its
                prefix is invalid.
        """
        check_prefix(self.captioner, request)
        check_window(self.captioner, request)
        self.check_fits(request)
        if self.mixing.uses_second(request.ratio) and not self._workload.dual_path_share:
            raise ValueError(f"request {request.request_id!r} has h = {request.ratio:g}; the engine has no second path")
        views = request.decoding.views.count
        if views > self._workload.views:
            raise ValueError(
                f"request {request.request_id!r} has {views} views; the engine has rows for {self._workload.views}"
            )
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
        return bool(waiting) | (self._batch is not None and self._batch.cancel(request_id))

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
        slots = [] if self._batch is None else [slot for slot, _ in self._batch.in_flight()]
        slots += self._fill_slots(result)
        while self._batch is not None and slots:
            for slot, token in zip(slots, self._batch.sample(slots), strict=True):
                self._append_token(self._batch, slot, token, result)
            slots = self._fill_slots(result)
        if self._batch is not None and self._batch.in_flight():
            self._used_slots += len(self._batch.in_flight())
            self._offered_slots += self._batch.layout.slots
            self.forwards += 1
            self._batch.forward_step()

    def _halve_slots(self) -> None:
        """Free all memory and lay out half the slots next; captions in flight return to the front of the queue."""
        slots = self._capacity.slots if self._batch is None else self._batch.layout.slots
        if slots == 1 and not self._capacity.wait_for_memory():
            raise DeviceError(
                "the device has too little memory to decode one caption",
                "stop other processes on it, set 'generate.kv_cache_gib' lower, or take one with more memory",
            )
        fewer = max(1, slots // 2)
        if fewer < slots:
            log.warning("out of memory with %d captions together; continuing with %d", slots, fewer)
        in_flight = [] if self._batch is None else self._batch.in_flight()
        self._queue.extendleft(caption.request for _, caption in reversed(in_flight))
        self._capacity.reduce_to(fewer)
        self._release_batch()

    def _release_batch(self) -> None:
        """Free all memory that is laid out."""
        self._batch = None
        self._draining = False

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
        while self._batch is not None and self._queue and not self._draining and self._batch.has_free_slot:
            request = next(self._startable(self._batch), None)
            if request is None:
                break
            filled.append(self._batch.start(request, self._queue))
            self._queue.remove(request)  # only now: starting may run out of memory
        return filled

    def _update_layout(self, result: StepResult) -> None:
        """Lay memory out, once no caption is in flight, if the next request needs it or to try more slots."""
        if not self._queue:
            return
        if self._batch is not None and not self._draining:
            layout = self._batch.layout
            if self._capacity.retry_due:
                budget = kv_budget(self.captioner, self._kv_cache_gib, layout.bytes)
                requirements = [self._prefill.requirement(request) for request in self._queue]
                self._draining = self._capacity.try_more(layout.slots, requirements, budget)
            if not self._draining and layout.requirement.covers(self._prefill.requirement(self._queue[0])):
                return
        if self._batch is not None and self._batch.in_flight():
            return
        previous = None if self._batch is None else self._batch.layout.requirement
        self._release_batch()
        budget = kv_budget(self.captioner, self._kv_cache_gib)
        requirements = [self._prefill.requirement(request) for request in self._queue]
        fits = [self._capacity.fits(requirement, budget) for requirement in requirements]
        if not any(fits):
            self._wait_for_memory(result)
            return
        order = sorted(range(len(fits)), key=lambda index: not fits[index])  # requests that fit come first
        self._queue = deque(self._queue[index] for index in order)
        fitting = [requirements[index] for index in order if fits[index]]
        layout = self._capacity.layout(fitting, previous, budget)
        self._batch = Batch(self.captioner, self._workload, layout, self._prefill, self._compiling)

    def _wait_for_memory(self, result: StepResult) -> None:
        """Pause because no waiting request fits into the free memory; after some time all of them fail."""
        if not self._capacity.wait_for_memory():
            while self._queue:
                request = self._queue.popleft()
                result.failed.append((request.request_id, no_memory_error(request)))

    def _startable(self, batch: Batch) -> Iterator[Request]:
        """Waiting requests that can start now, in the order of their submission.

        No request overtakes one that is too large for the layout or waits for a text prefix: it might wait for ever.
        """
        for request in islice(self._queue, LOOKAHEAD * self._workload.slots):
            if not batch.layout.requirement.covers(self._prefill.requirement(request)):
                return
            if not batch.has_text_prefix(request):
                return
            if batch.has_rows(request, self._queue):
                yield request

    def _append_token(self, batch: Batch, slot: int, token: int, result: StepResult) -> None:
        """Append a token to a caption; a finished or failed caption leaves its slot."""
        caption = batch.caption(slot)
        request = caption.request
        if token == sampling.NO_TOKEN:
            result.failed.append((request.request_id, no_token_error(request, len(caption.tokens))))
            batch.free(slot, clear=True)
            return
        logp = None if request.alternatives is None else caption.token_logps[-1]
        result.drawn.append(Drawn(request.request_id, len(caption.tokens), token, logp))
        caption.tokens.append(token)
        completed = completed_caption(
            self.captioner, request, caption.tokens, caption.logps, caption.unconditional_logps, caption.token_logps
        )
        if completed is not None:
            result.finished.append(completed)
            batch.free(slot)
