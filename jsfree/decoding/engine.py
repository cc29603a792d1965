"""The dual-path engine: captions in flight, each in a slot that is refilled as soon as the caption ends.

A step is one forward of the model over a fixed number of rows: a row a slot for the path with the image, and rows
of the second path for captions that mix it in (h = 0 needs none; h = 1 needs no image). An image with its prompt
is prefilled alone, once for all its captions that are decoded together, and the prompt without image once at all.
How many rows there are does not depend on who is decoded; how far back they look does, which adds masked zeros to
sums. In float32 a caption is the same whatever its neighbours, their order and its worker (tested on CPUs).

Use ``decode`` for a batch, or ``submit``, ``step`` and ``cancel`` to come and go while others are under way.
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
from jsfree.decoding.entries import Entries, Leads, Live, first_free
from jsfree.decoding.forward import IDLE, Forward, Row
from jsfree.decoding.memory import Layout, Shape, budget_of, keys_of, limit_of
from jsfree.decoding.prefill import Prefill
from jsfree.decoding.requests import NO_MEMORY, NO_TOKEN, Caption, Request, Step, finished
from jsfree.errors import DecodingError, DeviceError, NoTokenError
from jsfree.gpus import out_of_memory
from jsfree.models.loading import Captioner

log = logging.getLogger(__name__)
LOOKAHEAD = 2
"""Requests that wait, as a multiple of the slots, and may overtake one whose place is taken."""


class DualPathEngine:
    """Decodes captions by Eq. 3, or by another mixing of two paths."""

    def __init__(
        self,
        captioner: Captioner,
        slots: int,
        *,
        mixed: float = 1.0,
        seats: int = 2,
        images: float = 0.75,
        prompts: int | None = None,
        mixing_of: mixing.Mixing | None = None,
        kv_cache_gib: float | None = None,
        compiling: Compiling = "none",
    ) -> None:
        """Prepare; memory for keys and values is laid out when the first request is there.

        Args:
            captioner: its language model is set to attend through ``attention.py``.
            slots: most captions decoded together; fewer where memory does not hold them.
            mixed: share of the slots that may use the second path at a time.
            seats: captions of an image that share its prefill.
            images: images whose prefill is held, as a share of the slots. A caption that outlives its sibling holds
                one alone, so more than one in ``seats`` are needed; 1 always suffices.
            prompts: distinct prompts that second paths without image follow at a time; any number when omitted, for
                more memory. A request with one more waits until there is a place.
            mixing_of: how the paths are mixed; Eq. 3 when omitted.
            kv_cache_gib: memory for keys and values; a share of what is free when omitted.
            compiling: how a step is run.
        """
        attention.install(captioner)
        self.captioner = captioner
        self.mixing = mixing_of or mixing.Probability()
        self.layout: Layout | None = None
        self.reset_counts()
        self._shape = Shape(slots, mixed, seats, images, prompts, self.mixing.noise_step is not None)
        self._kv_cache_gib = kv_cache_gib
        self._capacity = Capacity(self._shape, keys_of(captioner), limit_of(captioner, kv_cache_gib))
        self._compiling = compiling
        self._prefill = Prefill(captioner)
        self._queue: deque[Request] = deque()
        self._slots: list[Live | None] = []
        self._second: list[int | None] = []
        self._forward: Forward | None
        self._forget()

    def reset_counts(self) -> None:
        """Begin to count anew: tokens drawn, forwards of the model, and slots that held a caption in them."""
        self.tokens = self.forwards = 0
        self._fed = self._room = 0

    @property
    def active(self) -> int:
        """Captions waiting or being decoded."""
        return len(self._queue) + sum(live is not None for live in self._slots)

    @property
    def room(self) -> int:
        """Requests that would not wait long."""
        return LOOKAHEAD * self._shape.slots - len(self._queue)

    @property
    def utilisation(self) -> float:
        """Share of the slots that held a caption, over all forwards of the model."""
        return self._fed / self._room if self._room else 0.0

    def submit(self, request: Request) -> None:
        """Queue a request; it starts at a later step.

        Raises:
            DeviceError: it could never fit into the memory; one that only does not fit now waits.
            ValueError: it needs a second path, which this engine was made without.
        """
        self.require_room(request)
        if self.mixing.uses_second(request.ratio) and not self._shape.mixed:
            raise ValueError(f"request {request.request_id!r} has h = {request.ratio:g}; the engine has no second path")
        self._queue.append(request)

    def require_room(self, request: Request) -> None:
        """Check that keys and values of a request could fit into the memory, alone if need be.

        Raises:
            DeviceError: they are larger than the configured size, or than the device could ever hold.
        """
        self._capacity.require(self._prefill.need(request))

    def cancel(self, request_id: str) -> bool:
        """Drop a request, waiting or live; False when there is none of that id."""
        waiting = [request for request in self._queue if request.request_id == request_id]
        for request in waiting:
            self._queue.remove(request)
        live = [slot for slot, each in enumerate(self._slots) if each and each.request.request_id == request_id]
        for slot in live:
            self._free(slot)
        return bool(waiting or live)

    @torch.inference_mode()
    def step(self) -> Step:
        """Decode one token of every live caption.

        Slots that fall free are refilled within the step, so that none is idle while a request waits. Where the
        device runs out of memory, captions begin anew in half as many slots, for a while (``capacity.py``).

        Raises:
            DeviceError: there has not been enough memory for a single caption for some time.
        """
        step, crowded = Step(), False
        try:
            self._step(step)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            crowded = True  # dealt with below: the error holds on to what a step had computed
        if crowded:
            self._shrink()
        elif step.drawn:
            self._capacity.note_progress()
        self.tokens += len(step.drawn)
        return step

    def _step(self, step: Step) -> None:
        fresh = [slot for slot, live in enumerate(self._slots) if live is not None]
        fresh += self._admit(step)
        while fresh:
            for slot, token in zip(fresh, self._draw(fresh), strict=True):
                self._take(slot, token, step)
            fresh = self._admit(step)
        self._advance()

    def _shrink(self) -> None:
        """Give up half of the slots and the memory laid out for them; live captions wait again, before the others."""
        slots = len(self._slots) or self._capacity.slots
        if slots == 1 and not self._capacity.wait_for_memory():
            raise DeviceError(
                "the device has too little memory to decode one caption",
                "stop what else runs on it, set 'generate.kv_cache_gib' lower, or take one with more memory",
            )
        fewer = max(1, slots // 2)
        if fewer < slots:
            log.warning("out of memory with %d captions together; going on with %d", slots, fewer)
        live = [each for each in self._slots if each is not None]
        self._queue.extendleft(each.request for each in reversed(live))
        self._capacity.lower(fewer)
        self._forget()

    def _forget(self) -> None:
        """Free all that is laid out."""
        self.layout = self._forward = None
        self._slots, self._second = [], []
        self._draining = False
        self._entries, self._leads = Entries(0, 0), Leads(0)
        self._logits_RV = torch.zeros(0)

    def decode(self, requests: Iterable[Request]) -> list[Caption]:
        """Decode requests with distinct ids; captions in the order of the requests.

        Requests are taken as slots ask for them: they may be made, and their images read, while others are decoded.
        """
        order: list[str] = []
        captions: dict[str, Caption] = {}

        def step() -> None:
            made = self.step()
            captions.update((caption.request_id, caption) for caption in made.finished)
            for _, error in made.failed:
                raise error

        try:
            for request in requests:
                order.append(request.request_id)
                self.submit(request)
                while self.room <= 0:
                    step()
            while self.active:
                step()
        except BaseException:
            for request_id in order:  # the next batch must not decode what nobody waits for
                self.cancel(request_id)
            raise
        return [captions[request_id] for request_id in order]

    def _admit(self, step: Step) -> list[int]:
        """Fill free slots; those that were."""
        filled: list[int] = []
        self._lay_out(step)
        while self._queue and not self._draining and (slot := first_free(self._slots)) is not None:
            request = next(self._placeable(), None)
            if request is None:
                break
            self._slots[slot] = self._begin(request, slot)
            self._queue.remove(request)  # not before: memory may give out there
            filled.append(slot)
        return filled

    def _lay_out(self, step: Step) -> None:
        """Lay memory out where no caption is live and the next request does not fit, or more slots can be tried."""
        if not self._queue:
            return
        if self.layout is not None and not self._draining:
            if self._capacity.due:
                budget = budget_of(self.captioner, self._kv_cache_gib, self.layout.bytes)
                needs = [self._prefill.need(request) for request in self._queue]
                self._draining = self._capacity.try_more(self.layout.slots, needs, budget)
            if not self._draining and self.layout.need.holds(self._prefill.need(self._queue[0])):
                return
        if any(self._slots):
            return
        before = self.layout.need if self.layout is not None else None
        self._forget()
        budget = budget_of(self.captioner, self._kv_cache_gib)
        needs = [self._prefill.need(request) for request in self._queue]
        fits = [self._capacity.holds(need, budget) for need in needs]
        if not any(fits):
            self._wait_for_memory(step)
            return
        order = sorted(range(len(fits)), key=lambda at: not fits[at])  # what does not fit now waits behind the others
        self._queue = deque(self._queue[at] for at in order)
        self.layout = self._capacity.layout([needs[at] for at in order if fits[at]], before, budget)
        self._forward = Forward(self.captioner, self.layout.cache, self._compiling)
        self._logits_RV = torch.zeros(self.layout.cache.rows, self.captioner.vocabulary, device=self.captioner.device)
        self._slots = [None] * self.layout.slots
        self._second = [None] * self.layout.mixed
        self._entries, self._leads = Entries(self.layout.images, self._shape.seats), Leads(self.layout.cache.leads)

    def _wait_for_memory(self, step: Step) -> None:
        """Pause, because no request that waits fits into the memory that is free now; after some time they fail."""
        if not self._capacity.wait_for_memory():
            while self._queue:
                step.fail(self._queue.popleft(), DecodingError, NO_MEMORY)

    def _placeable(self) -> Iterator[Request]:
        """Waiting requests, the longest first, for which there is a place now.

        None overtakes one that is too large, or whose prompt waits for a place: it would wait for ever.
        """
        assert self.layout is not None
        for request in islice(self._queue, LOOKAHEAD * self._shape.slots):
            if not self.layout.need.holds(self._prefill.need(request)):
                return
            mixed = self.mixing.uses_second(request.ratio)
            if mixed and not self._shape.second_image and self._leads.place_for(request.prompt) is None:
                return
            has_row = not mixed or first_free(self._second) is not None
            needs_entry = self.mixing.uses_first(request.ratio) or self._shape.second_image
            if has_row and (not needs_entry or self._place(request) is not None):
                yield request

    def _place(self, request: Request) -> int | None:
        """The entry that a request can take a seat at now."""
        return self._entries.place_for(request, self._queue, must=not any(self._slots))

    def _begin(self, request: Request, slot: int) -> Live:
        """Prefill what a caption needs."""
        assert self._forward is not None
        live = Live(request, sampling.NoiseStream(request.noise, self.captioner.vocabulary))
        if self.mixing.uses_first(request.ratio) or self._shape.second_image:
            live.entry = self._place(request)
            assert live.entry is not None
            entry = self._entries.prefilled(request, live.entry, self._prefill, self._forward.cache)
            live.seat = entry.readers.index(None)
            entry.readers[live.seat] = slot
            self._logits_RV[slot] = entry.first_V
        if self.mixing.uses_second(request.ratio):
            live.second_row = len(self._slots) + self._second.index(None)
            self._second[live.second_row - len(self._slots)] = slot
            if self._shape.second_image:
                assert live.entry is not None
                self._logits_RV[live.second_row] = self._entries.second(
                    live.entry, self.mixing.noise_step, self._prefill, self._forward.cache
                )
            else:
                prefilled = self._prefill.text(request.prompt)
                self._logits_RV[live.second_row] = prefilled.logits_V
                live.lead = self._leads.place_for(request.prompt)
                assert live.lead is not None
                if self._leads.follow(live.lead, request.prompt):
                    self._forward.cache.store_lead(live.lead, prefilled.cache)
        return live

    def _draw(self, slots: Sequence[int]) -> list[int]:
        """The next token of these slots' captions."""
        live = [self._live(slot) for slot in slots]
        noise_BN = torch.from_numpy(np.stack([each.noise.token() for each in live])).to(self.captioner.device)
        greedy = [each.request.decoding.temperature == 0 for each in live]
        tokens: list[int] = sampling.draw(self._probs(slots, live), noise_BN, greedy).tolist()
        return tokens

    def _probs(self, slots: Sequence[int], live: Sequence[Live]) -> torch.Tensor:
        """What the next tokens are drawn from, (captions, V)."""
        requests = [each.request for each in live]
        rows = mixing.Rows.of(
            [request.decoding for request in requests],
            [request.ratio for request in requests],
            [len(each.tokens) for each in live],
            self.captioner.device,
        )
        # A caption of h = 1 has no first path: its second is looked at in its place.
        firsts = [
            slot if self.mixing.uses_first(request.ratio) else each.second_row or 0
            for slot, each, request in zip(slots, live, requests, strict=True)
        ]
        seconds = [each.second_row for each in live]
        return self.mixing.of_table(self._logits_RV, firsts, seconds, rows, self.captioner.suppressed_ids)

    def _take(self, slot: int, token: int, step: Step) -> None:
        """Add a token to a caption; a caption that it completes leaves its slot."""
        live = self._live(slot)
        if token == sampling.NO_TOKEN:
            step.fail(live.request, NoTokenError, NO_TOKEN.format(at=len(live.tokens)))
            self._free(slot)
            if self._forward is not None:
                self._forward.cache.clear_rows([row for row in (slot, live.second_row) if row is not None])
            return
        live.tokens.append(token)
        step.drawn.append((live.request.request_id, token))
        caption = finished(self.captioner, live.request, live.tokens)
        if caption is not None:
            step.finished.append(caption)
            self._free(slot)

    def _advance(self) -> None:
        """Feed the last token of every live caption to the model."""
        if self._forward is None or not any(self._slots):
            return
        self._fed += sum(live is not None for live in self._slots)
        self._room += len(self._slots)
        self.forwards += 1
        rows = [IDLE] * (len(self._slots) + len(self._second))
        for slot, live in enumerate(self._slots):
            if live is None:
                continue
            fill, token = len(live.tokens) - 1, live.tokens[-1]
            if self.mixing.uses_first(live.request.ratio):
                rows[slot] = Row(token, fill, live.entry, live.seat)
            if live.second_row is not None:
                source = live.lead
                if live.entry is not None and self._shape.second_image:
                    source = len(self._entries) + live.entry
                rows[live.second_row] = Row(token, fill, source, live.seat)
        self._logits_RV = self._forward(rows)

    def _free(self, slot: int) -> None:
        live = self._live(slot)
        self._slots[slot] = None
        if live.entry is not None:
            self._entries[live.entry].readers[live.seat] = None
        if live.second_row is not None:
            self._second[live.second_row - len(self._slots)] = None
        if live.lead is not None:
            self._leads.leave(live.lead)

    def _live(self, slot: int) -> Live:
        live = self._slots[slot]
        assert live is not None
        return live
