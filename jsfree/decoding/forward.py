"""One decoding step of the model over all rows of both paths: eager, compiled, or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from jsfree.config import Compiling
from jsfree.decoding.cache import CacheLayout, Extent, KvCache, StepRows, round_up
from jsfree.errors import DeviceError
from jsfree.models.loading import Captioner


@dataclass(frozen=True)
class Row:
    """Input of a row in a step."""

    token: int = 0
    """The token that is fed."""
    own_length: int = 0
    """Own tokens before it."""
    prefix: int | None = None
    """Image or text prefix that the row reads."""
    reader: int = 0
    """Number of the row among the readers of its image prefix."""


IDLE = Row()


class Forward:
    """The model with the cache that its steps read and write."""

    def __init__(self, captioner: Captioner, layout: CacheLayout, compiling: Compiling = "none") -> None:
        """Allocate the cache.

        Raises:
            DeviceError: CUDA graphs are configured, but the model is not on one GPU.
        """
        device, devices = captioner.device, getattr(captioner.model, "hf_device_map", {})
        if compiling == "cuda_graphs" and (device.type != "cuda" or len(set(devices.values())) > 1):
            raise DeviceError("'compile: cuda_graphs' needs a model on one GPU", "set 'generate.compile: none'")
        self.cache = KvCache(layout, device)
        self._language_model, self._head = captioner.language_model, captioner.model.lm_head
        if device.type == "cpu":
            _transpose_weights(captioner.model)
        self._no_mask = torch.zeros(1, 1, 1, 1, device=device)  # transformers uses a mask of four axes unchanged
        self._coarse = compiling != "none" or device.type == "cuda"
        self._run: Callable[[Forward, torch.Tensor, Extent], torch.Tensor] = Forward._step
        if compiling == "inductor":
            # dynamo keeps what it compiled for earlier layouts, and stops compiling after eight of them.
            torch.compiler.reset()
            self._run = torch.compile(Forward._step, dynamic=False)
        elif compiling == "cuda_graphs":
            self._run = _Graphs()

    def __call__(self, rows: Sequence[Row]) -> torch.Tensor:
        """Logits of the tokens after those that the rows feed, (rows, V)."""
        layout = self.cache.layout
        absent = [layout.image_prefixes] * layout.image_rows + [layout.text_prefixes] * (
            layout.rows - layout.image_rows
        )
        table = [
            (row.token, row.own_length, none if row.prefix is None else row.prefix, row.reader)
            for row, none in zip(rows, absent, strict=True)
        ]
        return self._run(self, torch.tensor(table).T.contiguous().to(self._no_mask.device), self._extent(rows))

    def _extent(self, rows: Sequence[Row]) -> Extent:
        """The part of the cache that these rows read.

        On GPUs, where shapes affect the arithmetic, and for compiled steps it grows in four steps only.
        """
        layout = self.cache.layout
        own_tokens = round_up(1 + max(row.own_length for row in rows))
        if self._coarse:
            quarter = round_up(-(-layout.own_tokens // 4))
            own_tokens = min(-(-own_tokens // quarter) * quarter, layout.own_tokens)
            return Extent(own_tokens, layout.image_prefixes, layout.image_tokens, layout.text_prefixes)
        images, texts = _prefixes(rows[: layout.image_rows]), _prefixes(rows[layout.image_rows :])
        longest = round_up(max((self.cache.image_lengths[number] for number in images), default=0))
        return Extent(
            own_tokens,
            image_prefixes=1 + max(images, default=0),
            image_tokens=min(longest, layout.image_tokens),
            text_prefixes=1 + max(texts, default=0),
        )

    def _step(self, table_4R: torch.Tensor, extent: Extent) -> torch.Tensor:
        token_R, own_length_R, prefix_R, reader_R = table_4R.unbind()
        position_R = self.cache.begin_step(StepRows(own_length_R, prefix_R, reader_R), extent)
        hidden_R1C = self._language_model(
            input_ids=token_R[:, None],
            position_ids=position_R[:, None],
            attention_mask=self._no_mask,
            past_key_values=self.cache,
            use_cache=True,
            kv_cache=self.cache,
        ).last_hidden_state
        logits_RV: torch.Tensor = self._head(hidden_R1C[:, 0])
        return logits_RV.to(table_4R.device)


def _prefixes(rows: Sequence[Row]) -> list[int]:
    return [row.prefix for row in rows if row.prefix is not None]


def _transpose_weights(model: torch.nn.Module) -> None:
    """Store the weights of linear layers column-major; values and shapes stay the same.

    A CPU's matrix product with a few dozen rows, the size of a step, is then about a fifth faster.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and id(module.weight) not in embedded:
            module.weight.data = module.weight.data.t().contiguous().t()


class _Graphs:
    """A CUDA graph of a step for each extent, captured at first use and then replayed."""

    def __init__(self) -> None:
        self._captured: dict[Extent, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}

    def __call__(self, forward: Forward, table_4R: torch.Tensor, extent: Extent) -> torch.Tensor:
        if extent not in self._captured:
            self._captured[extent] = self._capture(forward, table_4R, extent)
        graph, input_4R, logits_RV = self._captured[extent]
        input_4R.copy_(table_4R)
        graph.replay()
        return logits_RV.clone()  # the next replay overwrites the output

    def _capture(
        self, forward: Forward, table_4R: torch.Tensor, extent: Extent
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        input_4R = table_4R.clone()
        side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):  # warm-up: libraries initialise at first calls, which cannot be captured
            for _ in range(2):
                forward._step(input_4R, extent)
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        # A failed capture may leave its own stream current; the outer context restores this one. "thread_local", since
        # other threads prepare images meanwhile.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, capture_error_mode="thread_local"),
        ):
            logits_RV = forward._step(input_4R, extent)
        return graph, input_4R, logits_RV
