"""One decoding step of the model over all rows of both paths: as it is, compiled, or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from jsfree.config import Compiling
from jsfree.decoding.cache import CacheLayout, Extent, Fed, KvCache, rounded
from jsfree.errors import DeviceError
from jsfree.models.loading import Captioner


@dataclass(frozen=True)
class Row:
    """What a row feeds: its last token, behind ``fill`` tokens of its own.

    ``source`` is what it reads beside them: an entry, from a seat, or a lead.
    """

    token: int = 0
    fill: int = 0
    source: int | None = None
    seat: int = 0


IDLE = Row()


class Forward:
    """The model with the memory that its steps work in."""

    def __init__(self, captioner: Captioner, layout: CacheLayout, compiling: Compiling = "none") -> None:
        """Lay the memory out.

        Raises:
            DeviceError: CUDA graphs were asked for, but the model is not on one GPU.
        """
        device, devices = captioner.device, getattr(captioner.model, "hf_device_map", {})
        if compiling == "cuda_graphs" and (device.type != "cuda" or len(set(devices.values())) > 1):
            raise DeviceError("'compile: cuda_graphs' needs a model on one GPU", "set 'generate.compile: none'")
        self.cache = KvCache(layout, device)
        self._model = captioner.model
        if device.type == "cpu":
            _lay_out_for_few_rows(self._model)
        self._no_mask = torch.zeros(1, 1, 1, 1, device=device)  # four axes: transformers takes it as it is
        self._recurring = compiling != "none" or device.type == "cuda"
        self._run: Callable[[Forward, torch.Tensor, Extent], torch.Tensor] = Forward._step
        if compiling == "inductor":
            # dynamo keeps what it compiled for earlier layouts, and after eight of them no longer compiles.
            torch.compiler.reset()
            self._run = torch.compile(Forward._step, dynamic=False)
        elif compiling == "cuda_graphs":
            self._run = _Graphs()

    def __call__(self, rows: Sequence[Row]) -> torch.Tensor:
        """Logits of the tokens behind those fed, (rows, V)."""
        layout = self.cache.layout
        none = [layout.entries] * layout.readers + [layout.leads] * (layout.rows - layout.readers)
        table = [
            (row.token, row.fill, absent if row.source is None else row.source, row.seat)
            for row, absent in zip(rows, none, strict=True)
        ]
        return self._run(self, torch.tensor(table).T.contiguous().to(self._no_mask.device), self._extent(rows))

    def _extent(self, rows: Sequence[Row]) -> Extent:
        """What these rows read. Where shapes decide about arithmetic, or are compiled, in few steps of size."""
        layout = self.cache.layout
        own = rounded(1 + max(row.fill for row in rows))
        if self._recurring:
            quarter = rounded(-(-layout.own // 4))
            own = min(-(-own // quarter) * quarter, layout.own)
            return Extent(own, layout.entries, layout.prefix, layout.leads)
        entries = _sources(rows[: layout.readers])
        prefix = rounded(max((self.cache.lengths[entry] for entry in entries), default=0))
        leads = _sources(rows[layout.readers :])
        return Extent(own, _count(entries), min(prefix, layout.prefix), _count(leads))

    def _step(self, table_4R: torch.Tensor, extent: Extent) -> torch.Tensor:
        token_R, *fed = table_4R.unbind()
        position_R = self.cache.feed(Fed(*fed), extent)
        hidden_R1C = self._model.model.language_model(
            input_ids=token_R[:, None],
            position_ids=position_R[:, None],
            attention_mask=self._no_mask,
            past_key_values=self.cache,
            use_cache=True,
            paths=self.cache,
        ).last_hidden_state
        logits_RV: torch.Tensor = self._model.lm_head(hidden_R1C[:, 0])
        return logits_RV.to(table_4R.device)


def _sources(rows: Sequence[Row]) -> list[int]:
    return [row.source for row in rows if row.source is not None]


def _count(numbers: Sequence[int]) -> int:
    """How many places there are up to the highest of these, at least one."""
    return 1 + max(numbers, default=0)


def _lay_out_for_few_rows(model: torch.nn.Module) -> None:
    """Keep the weights of linear layers column by column in memory: same numbers, same shapes.

    The CPU's matrix product of a few dozen rows, which is what a step is, then takes about a fifth less.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and id(module.weight) not in embedded:
            module.weight.data = module.weight.data.t().contiguous().t()


class _Graphs:
    """A step recorded once for each extent that it is asked for, and replayed."""

    def __init__(self) -> None:
        self._recorded: dict[Extent, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}

    def __call__(self, forward: Forward, table_4R: torch.Tensor, extent: Extent) -> torch.Tensor:
        if extent not in self._recorded:
            self._recorded[extent] = self._record(forward, table_4R, extent)
        graph, fed_4R, logits_RV = self._recorded[extent]
        fed_4R.copy_(table_4R)
        graph.replay()
        return logits_RV.clone()  # the next replay writes there

    def _record(
        self, forward: Forward, table_4R: torch.Tensor, extent: Extent
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        fed_4R = table_4R.clone()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries set themselves up at the first calls, which no graph may hold
            for _ in range(2):
                forward._step(fed_4R, extent)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # A capture that fails may leave its own stream as the current one; the outer context goes back to this one.
        # Other threads prepare images meanwhile.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, capture_error_mode="thread_local"),
        ):
            logits_RV = forward._step(fed_4R, extent)
        return graph, fed_4R, logits_RV
