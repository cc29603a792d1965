"""The batched dual-path decoder: both paths with a KV cache, requests admitted and cancelled between steps.

Requests wait in a queue. When no caption is live, a wave of up to ``slots`` requests with one prompt is
admitted: each distinct image is prefilled once and its cache shared out to its captions, the unconditional
prompt is prefilled once for all. Every step runs one forward per path over the rows that need it (h = 0 needs
no unconditional path, h = 1 no conditional one) and drops the rows whose caption has ended. All rows of a wave
have prompts of one length, so nothing is padded.

Shape suffixes: B live rows of the wave, P rows of a path, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from jsfree.decoding import mixing, sampling
from jsfree.decoding.requests import Caption, Request, finished
from jsfree.models import Captioner

if TYPE_CHECKING:
    from transformers import DynamicCache


PROMPTS_KEPT = 256


@dataclass
class _Path:
    """One path of a wave: its cache, the wave's rows it serves, and the logits of their next token."""

    cache: DynamicCache
    rows: list[int]
    logits_PV: torch.Tensor


@dataclass
class _Wave:
    """Captions being decoded together."""

    requests: list[Request]
    tokens: list[list[int]]
    conditional: _Path | None
    unconditional: _Path | None
    live: list[int] = field(default_factory=list)


class DualPathDecoder:
    """Decodes captions by Eq. 3.

    Use ``decode`` for a batch, or ``submit``, ``step`` and ``cancel`` to admit and drop requests while others
    are under way.
    """

    def __init__(self, captioner: Captioner, slots: int, mode: mixing.Mixing = "probability") -> None:
        self.captioner = captioner
        self.slots = slots
        self.mode = mode
        self._queue: deque[Request] = deque()
        self._wave: _Wave | None = None
        self._prompt_ids: dict[tuple[str, bool], list[int]] = {}

    @property
    def active(self) -> int:
        """Captions waiting or being decoded."""
        return len(self._queue) + (len(self._wave.live) if self._wave else 0)

    def submit(self, request: Request) -> None:
        """Queue a request; it starts at a later step."""
        self._queue.append(request)

    def cancel(self, request_id: str) -> bool:
        """Drop a request, waiting or live; False when there is none of that id."""
        waiting = [request for request in self._queue if request.request_id == request_id]
        for request in waiting:
            self._queue.remove(request)
        live = [i for i in self._wave.live if self._wave.requests[i].request_id == request_id] if self._wave else []
        if self._wave and live:
            self._drop(self._wave, set(live))
        return bool(waiting or live)

    @torch.inference_mode()
    def step(self) -> list[Caption]:
        """Decode one token of every live caption; the captions that it completed."""
        if self._wave is None:
            if not self._queue:
                return []
            self._wave = self._admit()
        wave = self._wave
        drawn = self._next_tokens(wave)
        for row, token in zip(wave.live, drawn, strict=True):
            wave.tokens[row].append(token)
        done = {}
        for row in wave.live:
            caption = finished(self.captioner, wave.requests[row], wave.tokens[row])
            if caption is not None:
                done[row] = caption
        self._drop(wave, set(done))
        if self._wave is not None:
            self._advance(wave.conditional, wave)
            self._advance(wave.unconditional, wave)
        return list(done.values())

    def decode(self, requests: Sequence[Request]) -> list[Caption]:
        """Decode requests with distinct ids; captions in the order of the requests."""
        for request in requests:
            self.submit(request)
        captions: dict[str, Caption] = {}
        while self.active:
            captions.update((caption.request_id, caption) for caption in self.step())
        return [captions[request.request_id] for request in requests]

    def _admit(self) -> _Wave:
        """Take the next requests that share the first one's prompt, and prefill them."""
        prompt = self._queue[0].prompt
        taken: list[Request] = []
        kept: deque[Request] = deque()
        while self._queue and len(taken) < self.slots:
            request = self._queue.popleft()
            (taken if request.prompt == prompt else kept).append(request)
        self._queue.extendleft(reversed(kept))
        rows = list(range(len(taken)))
        return _Wave(
            taken,
            [[] for _ in taken],
            self._prefill_images(taken, [i for i in rows if taken[i].ratio < 1], prompt),
            self._prefill_prompt([i for i in rows if taken[i].ratio > 0], prompt),
            rows,
        )

    def _prefill_images(self, requests: Sequence[Request], rows: list[int], prompt: str) -> _Path | None:
        """Prefill image and prompt once per distinct image, then share the cache out to the rows."""
        if not rows:
            return None
        images = {id(requests[row].image): requests[row].image for row in rows}
        position = {key: index for index, key in enumerate(images)}
        ids = self._ids(prompt, image=True).expand(len(images), -1)
        cache = self._new_cache()
        output = self.captioner.model(
            input_ids=ids,
            pixel_values=self.captioner.pixel_values(list(images.values())),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        source = torch.tensor([position[id(requests[row].image)] for row in rows], device=self.captioner.index_device)
        cache.batch_select_indices(source)
        return _Path(cache, rows, output.logits[:, -1][source])

    def _prefill_prompt(self, rows: list[int], prompt: str) -> _Path | None:
        """Prefill the prompt without image once for all rows."""
        if not rows:
            return None
        cache = self._new_cache()
        ids = self._ids(prompt, image=False)
        output = self.captioner.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(rows))
        return _Path(cache, rows, output.logits[:, -1].repeat(len(rows), 1))

    def _new_cache(self) -> DynamicCache:
        from transformers import DynamicCache

        return DynamicCache(config=self.captioner.model.config.get_text_config())

    def _next_tokens(self, wave: _Wave) -> list[int]:
        """Draw the next token of every live row."""
        requests = [wave.requests[row] for row in wave.live]
        device = self.captioner.device
        temperature = torch.tensor(
            [request.decoding.temperature for request in requests], dtype=torch.float32, device=device
        )
        log_probs_BV = mixing.next_token_log_probs(
            self._of_live_rows(wave.conditional, wave),
            self._of_live_rows(wave.unconditional, wave),
            ratio_B=torch.tensor([request.ratio for request in requests], dtype=torch.float32, device=device),
            temperature_B=temperature,
            top_p_B=torch.tensor([request.decoding.top_p for request in requests], dtype=torch.float32, device=device),
            mixing=self.mode,
        )
        noise_BV = sampling.gumbel(
            [request.noise for request in requests],
            [len(wave.tokens[row]) for row in wave.live],
            log_probs_BV.shape[-1],
            device,
        )
        drawn = sampling.draw(log_probs_BV, noise_BV, temperature == 0, self.captioner.suppressed_ids)
        return [int(token) for token in drawn]

    def _of_live_rows(self, path: _Path | None, wave: _Wave) -> torch.Tensor:
        """A path's logits laid out by live row, (B, V); zeros where the path does not serve a row."""
        served = path if path is not None and path.rows else None
        vocabulary = self.captioner.model.config.get_text_config().vocab_size
        logits_BV = torch.zeros(len(wave.live), vocabulary, device=self.captioner.device)
        if served is not None:
            position = {row: index for index, row in enumerate(wave.live)}
            logits_BV[[position[row] for row in served.rows]] = served.logits_PV.float()
        return logits_BV

    def _advance(self, path: _Path | None, wave: _Wave) -> None:
        """Feed the last token of a path's rows to the model."""
        if path is None or not path.rows:
            return
        last = torch.tensor([[wave.tokens[row][-1]] for row in path.rows], device=self.captioner.device)
        path.logits_PV = self.captioner.model(input_ids=last, past_key_values=path.cache, use_cache=True).logits[:, -1]

    def _drop(self, wave: _Wave, rows: set[int]) -> None:
        """Remove rows from the wave and from both caches."""
        wave.live = [row for row in wave.live if row not in rows]
        if not wave.live:
            self._wave = None
            return
        for path in (wave.conditional, wave.unconditional):
            if path is not None and rows.intersection(path.rows):
                kept = [index for index, row in enumerate(path.rows) if row not in rows]
                path.rows = [path.rows[index] for index in kept]
                index = torch.tensor(kept, dtype=torch.int64, device=self.captioner.index_device)
                path.logits_PV = path.logits_PV[index]
                if kept:
                    path.cache.batch_select_indices(index)

    def _ids(self, prompt: str, *, image: bool) -> torch.Tensor:
        """Token ids of the prompt, (1, length)."""
        if len(self._prompt_ids) >= PROMPTS_KEPT:  # a server is asked without end
            self._prompt_ids.clear()
        if (prompt, image) not in self._prompt_ids:
            self._prompt_ids[prompt, image] = self.captioner.prompt_ids(prompt, image=image)
        return torch.tensor([self._prompt_ids[prompt, image]], device=self.captioner.device)
