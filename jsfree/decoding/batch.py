"""Captions in flight in one memory layout: their slots, the prefixes that they read, and their next logits.

Each slot has W consecutive rows for the views of its image, W being the most that a caption may have; rows of the
second path follow those of all slots.

Shape suffixes: B captions, N numbers of noise a token, R rows, V vocabulary, W views.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from jsfree.config import Compiling, Decoding
from jsfree.decoding import mixing, sampling
from jsfree.decoding.forward import IDLE, Forward, Row
from jsfree.decoding.prefill import Prefill
from jsfree.decoding.prefixes import ActiveCaption, PrefilledImages, TextPrefixes, first_free
from jsfree.decoding.requests import Request, TokenLogp
from jsfree.decoding.workload import Layout, Workload
from jsfree.models.loading import Captioner


class Batch:
    """The captions that are decoded together, each in a slot."""

    def __init__(
        self, captioner: Captioner, workload: Workload, layout: Layout, prefill: Prefill, compiling: Compiling
    ) -> None:
        """Allocate the memory of a layout.

        Raises:
            DeviceError: CUDA graphs are configured, but the model is not on one GPU.
        """
        self.layout = layout
        self.forward = Forward(captioner, layout.cache, compiling)
        self._captioner, self._workload, self._prefill = captioner, workload, prefill
        self._mixing = workload.mixing
        self._logits_RV = torch.zeros(layout.cache.rows, captioner.vocabulary, device=captioner.device)
        self._slots: list[ActiveCaption | None] = [None] * layout.slots
        self._second_rows: list[int | None] = [None] * layout.second_rows
        self._images = PrefilledImages(layout.images, workload.captions_per_image, workload.views)
        self._texts = TextPrefixes(layout.cache.text_prefixes)

    def in_flight(self) -> list[tuple[int, ActiveCaption]]:
        """Slots that hold a caption, with their captions."""
        return [(slot, caption) for slot, caption in enumerate(self._slots) if caption is not None]

    def caption(self, slot: int) -> ActiveCaption:
        """The caption in a slot that holds one."""
        caption = self._slots[slot]
        assert caption is not None
        return caption

    @property
    def has_free_slot(self) -> bool:
        """Whether another caption may start."""
        return None in self._slots

    def has_text_prefix(self, request: Request) -> bool:
        """Whether there is a text prefix for a request, if it needs one."""
        needs_text = self._mixing.uses_second(request.ratio) and not self._workload.second_image
        return not needs_text or self._texts.find(request.prompt) is not None

    def has_rows(self, request: Request, waiting: Iterable[Request]) -> bool:
        """Whether there are a row for a request's second path and prefixes for its image, if it needs them."""
        if self._mixing.uses_second(request.ratio) and first_free(self._second_rows) is None:
            return False
        return not self._workload.uses_image(request) or self._find_image(request, waiting) is not None

    def start(self, request: Request, waiting: Iterable[Request]) -> int:
        """Prefill a caption's prefixes and set the logits of its first token; the slot that it takes.

        Args:
            request: a request for which there are a free slot, rows and prefixes.
            waiting: all requests that wait to start; images that they need are kept.
        """
        slot, cache = self._slots.index(None), self.forward.cache
        caption = ActiveCaption(request, sampling.NoiseStream(request.noise_key, self._captioner.vocabulary))
        number = self._find_image(request, waiting) if self._workload.uses_image(request) else None
        if number is not None:
            caption.image = number
            image = self._images.load(request, number, self._prefill, cache)
            caption.reader = image.readers.index(None)
            image.readers[caption.reader] = slot
            rows = self._view_rows(slot, request)
            self._logits_RV[rows.start : rows.stop] = image.logits_WV
        if self._mixing.uses_second(request.ratio):
            number = self._second_rows.index(None)
            self._second_rows[number] = slot
            caption.second_row = len(self._slots) * self._workload.views + number
            self._logits_RV[caption.second_row] = self._start_second_path(caption)
        self._slots[slot] = caption
        return slot

    def _start_second_path(self, caption: ActiveCaption) -> torch.Tensor:
        """Prefill the prefix of a caption's second path; the logits of its first token, (V,)."""
        request, cache = caption.request, self.forward.cache
        if self._mixing.noise_step is not None:
            assert caption.image is not None
            caption.second_prefix = self._images.noised_prefix(caption.image)
            return self._images.load_noised(request, caption.image, self._mixing.noise_step, self._prefill, cache)
        prefilled, text = self._prefill.text_prefix(request.prompt), self._texts.find(request.prompt)
        assert text is not None
        caption.second_prefix = text
        if self._texts.acquire(text, request.prompt):
            cache.store_text_prefix(text, prefilled.cache)
        return prefilled.logits_WV[0]

    def _view_rows(self, slot: int, request: Request) -> range:
        """Rows of the views of the caption in a slot."""
        first = slot * self._workload.views
        return range(first, first + request.decoding.views.count)

    def _find_image(self, request: Request, waiting: Iterable[Request]) -> int | None:
        return self._images.find(request, waiting, force=not any(self._slots))

    def sample(self, slots: Sequence[int]) -> list[int]:
        """Sample the next token of the captions in some slots, or take it from their requests' prefixes.

        Log-probabilities are added to the captions that ask for them.
        """
        captions = [self.caption(slot) for slot in slots]
        noise_BN = torch.from_numpy(np.stack([caption.noise.next_token() for caption in captions]))
        greedy = [caption.request.decoding.temperature == 0 for caption in captions]
        probs_BV = self.next_token_probs(slots)
        token_B = sampling.sample_tokens(probs_BV, noise_BN.to(self._captioner.device), greedy)
        _force_prefixes(captions, token_B)
        self._add_logps(slots, token_B)
        self._add_token_logps(slots, token_B)
        tokens: list[int] = token_B.tolist()
        return tokens

    def _add_logps(self, slots: Sequence[int], token_B: torch.Tensor) -> None:
        """Add the log-probabilities of new tokens to the captions that ask for them.

        Where there is none, because the conditional path is NaN, the token is replaced by ``NO_TOKEN``.
        """
        asking = [index for index, slot in enumerate(slots) if self.caption(slot).request.with_logps]
        if not asking:
            return
        captions = [self.caption(slots[index]) for index in asking]
        view_rows = [
            self._view_rows(slots[index], caption.request) for index, caption in zip(asking, captions, strict=True)
        ]
        logp_B = mixing.token_logps(self._logits_RV, view_rows, token_B[asking])
        token_B[asking] = token_B[asking].masked_fill(logp_B.isnan(), sampling.NO_TOKEN)
        for caption, logp in zip(captions, logp_B.tolist(), strict=True):
            caption.logps.append(logp)
        self._add_unconditional_logps(captions, token_B[asking])

    def _add_unconditional_logps(self, captions: Sequence[ActiveCaption], token_B: torch.Tensor) -> None:
        if self._mixing.noise_step is not None:  # the second path sees the noised image
            return
        having = [index for index, caption in enumerate(captions) if caption.second_row is not None]
        rows = [[row] for index in having if (row := captions[index].second_row) is not None]
        for index, logp in zip(
            having, mixing.token_logps(self._logits_RV, rows, token_B[having]).tolist(), strict=True
        ):
            captions[index].unconditional_logps.append(logp)

    def _add_token_logps(self, slots: Sequence[int], token_B: torch.Tensor) -> None:
        """Add the log-probabilities of new tokens and of their alternatives to the captions that ask for them."""
        asking = [index for index, slot in enumerate(slots) if self.caption(slot).request.alternatives is not None]
        if not asking:
            return
        captions = [self.caption(slots[index]) for index in asking]
        counts = [caption.request.alternatives or 0 for caption in captions]
        logp_BV = self.next_token_probs([slots[index] for index in asking], unmodified=True).log()
        own_B = logp_BV.gather(1, token_B[asking].clamp(min=0)[:, None])[:, 0]
        best_BA, best_token_BA = logp_BV.topk(min(max(counts), logp_BV.shape[1]))
        columns = (token_B[asking].tolist(), own_B.tolist(), best_token_BA.tolist(), best_BA.tolist())
        for caption, count, token, logp, tokens, logps in zip(captions, counts, *columns, strict=True):
            alternatives = tuple(zip(tokens[:count], logps[:count], strict=True))
            caption.token_logps.append(TokenLogp(token, logp, alternatives))

    def next_token_probs(self, slots: Sequence[int], *, unmodified: bool = False) -> torch.Tensor:
        """Distribution of the next token of the captions in some slots, (B, V).

        Args:
            slots: slots that hold captions.
            unmodified: at temperature 1, without truncation and without penalties.
        """
        captions = [self.caption(slot) for slot in slots]
        requests = [caption.request for caption in captions]
        settings = mixing.BatchSettings.of(
            [Decoding() if unmodified else request.decoding for request in requests],
            [request.ratio for request in requests],
            [len(caption.tokens) for caption in captions],
            self._captioner.device,
        )
        # A caption with h = 1 has no conditional path: its second row stands in for it.
        view_rows = [
            self._view_rows(slot, caption.request)
            if self._mixing.uses_conditional(caption.request.ratio)
            else [caption.second_row or 0]
            for slot, caption in zip(slots, captions, strict=True)
        ]
        second_rows = [caption.second_row for caption in captions]
        logits_RV = self._logits_RV if unmodified else self._penalised(captions, view_rows)
        return self._mixing.next_token_probs(logits_RV, view_rows, second_rows, settings)

    def _penalised(self, captions: Sequence[ActiveCaption], view_rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The logits of all rows, less the penalties of the captions that have some, (R, V)."""
        having = [
            (caption, rows)
            for caption, rows in zip(captions, view_rows, strict=True)
            if caption.request.presence_penalty or caption.request.frequency_penalty
        ]
        if not having:
            return self._logits_RV
        logits_RV = self._logits_RV.to(torch.float32, copy=True)
        for caption, rows in having:
            request, vocabulary = caption.request, logits_RV.shape[1]
            own = {*rows} if caption.second_row is None else {*rows, caption.second_row}
            logits_RV[sorted(own)] -= mixing.token_penalties(
                caption.tokens, request.presence_penalty, request.frequency_penalty, vocabulary, logits_RV.device
            )
        return logits_RV

    def forward_step(self) -> None:
        """Feed the last token of every caption in flight to the model."""
        rows = [IDLE] * self.layout.cache.rows
        for slot, caption in self.in_flight():
            own_length, token = len(caption.tokens) - 1, caption.tokens[-1]
            if self._workload.uses_conditional(caption.request):
                assert caption.image is not None
                for view, row in enumerate(self._view_rows(slot, caption.request)):
                    rows[row] = Row(token, own_length, self._images.prefix(caption.image, view), caption.reader)
            if caption.second_row is not None:
                rows[caption.second_row] = Row(token, own_length, caption.second_prefix, caption.reader)
        self._logits_RV = self._captioner.suppress(self.forward(rows))

    def cancel(self, request_id: str) -> bool:
        """Free the slots of a request; False if it has none."""
        slots = [slot for slot, caption in self.in_flight() if caption.request.request_id == request_id]
        for slot in slots:
            self.free(slot)
        return bool(slots)

    def free(self, slot: int, *, clear: bool = False) -> None:
        """Free a slot and what its caption reads.

        Args:
            slot: a slot that holds a caption.
            clear: set the caption's own keys and values to zero, because they may be NaN.
        """
        caption = self.caption(slot)
        self._slots[slot] = None
        if caption.image is not None:
            self._images[caption.image].readers[caption.reader] = None
        if caption.second_row is not None:
            self._second_rows[caption.second_row - len(self._slots) * self._workload.views] = None
        if caption.second_prefix is not None and not self._workload.second_image:
            self._texts.release(caption.second_prefix)
        if clear:
            second = [] if caption.second_row is None else [caption.second_row]
            self.forward.cache.clear_rows([*self._view_rows(slot, caption.request), *second])


def _force_prefixes(captions: Sequence[ActiveCaption], token_B: torch.Tensor) -> None:
    """Replace sampled tokens by those of the requests' prefixes, in place; ``NO_TOKEN`` stays."""
    forced = {index: token for index, caption in enumerate(captions) if (token := caption.forced_token) is not None}
    if forced:
        forced_B = torch.tensor(list(forced.values()), device=token_B.device)
        failed_B = token_B[list(forced)] == sampling.NO_TOKEN
        token_B[list(forced)] = forced_B.masked_fill(failed_B, sampling.NO_TOKEN)
