"""Log-probabilities under the frozen reference, computed once before the first step.

They are stored in a table of the run (``reference/``), one row per selected pair in the same order. So the reference
model is not in memory while the policy is trained, and a resumed run does not compute them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from jsfree import schemas
from jsfree.dpo.batching import PairBatch, prefetch
from jsfree.dpo.loss import PairLogps
from jsfree.dpo.pairs import Pairs, iterate
from jsfree.errors import StageError
from jsfree.run.folder import Folder, shard_name
from jsfree.run.streaming import scan

TABLE = shard_name(0)
REDO = "compute them again with --restart train"
LoadBatch = Callable[[Sequence[int]], PairBatch]
"""Builds the batch of the pairs at some positions."""


@dataclass(frozen=True)
class ReferenceLogps:
    """Summed log-probabilities of the chosen and the rejected caption of each pair, (pairs,) each."""

    chosen: NDArray[np.float64]
    rejected: NDArray[np.float64]

    def select(self, positions: Sequence[int], device: torch.device) -> PairLogps:
        """Log-probabilities of the pairs at some positions, (B,) each, float32."""
        chosen, rejected = (
            torch.tensor(values[positions], dtype=torch.float32, device=device)
            for values in (self.chosen, self.rejected)
        )
        return PairLogps(chosen, rejected)


def origin(model: str, dtype: str, preprocessing: str, pairs: str = "") -> dict[str, str]:
    """Everything that reference log-probabilities depend on; stored with the table.

    Args:
        model: fingerprint of the reference model.
        dtype: dtype of its weights.
        preprocessing: ``captioner.preprocessing``.
        pairs: digest of the pairs; left out if it is empty.
    """
    of_model = {"model": model, "captioner.dtype": dtype, "captioner.preprocessing": preprocessing}
    return {**of_model, "pairs": pairs} if pairs else of_model


def load_or_compute(
    folder: Folder,
    pairs: Pairs,
    lengths: NDArray[np.int32],
    origin: Mapping[str, str],
    load_batch: LoadBatch,
    forward: Callable[[PairBatch], PairLogps],
    micro: int,
) -> ReferenceLogps:
    """Read the stored table, or compute it on all workers and store it; every worker must call.

    Args:
        folder: folder of the table.
        pairs: all selected pairs.
        lengths: ``pair_length`` of each pair.
        origin: as of ``origin``.
        load_batch: builds a batch of pairs.
        forward: the reference: the engine before its first step, or a model.
        micro: pairs in one forward pass.

    Raises:
        StageError: the stored table has another origin or other pairs.
    """
    rank, device = dist.get_rank(), collective_device()
    stored = torch.tensor([folder.exists(TABLE) if rank == 0 else False], device=device).int()
    dist.broadcast(stored, src=0)
    if not stored.item():
        logps = _compute(lengths, load_batch, forward, micro)
        if rank == 0:
            _write(folder, pairs, logps, origin)
        dist.barrier()
    return _read(folder, pairs, origin)


def collective_device() -> torch.device:
    """Device on which tensors must be for collective operations."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _compute(
    lengths: NDArray[np.int32], load_batch: LoadBatch, forward: Callable[[PairBatch], PairLogps], micro: int
) -> ReferenceLogps:
    """Compute every world-th pair on each worker, sorted by length, and gather the results.

    Shares wrap around so that all workers make the same number of forward passes, which ZeRO-3 needs.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    by_length = np.argsort(-lengths, kind="stable")
    turns = np.arange(-(-len(lengths) // world))
    shares = [by_length[(worker + world * turns) % len(lengths)] for worker in range(world)]
    parts = (shares[rank][start : start + micro].tolist() for start in range(0, len(turns), micro))
    chosen, rejected = [], []
    for batch in prefetch(load_batch, parts):
        with torch.no_grad():
            logps = forward(batch)
        chosen.append(logps.chosen.double())
        rejected.append(logps.rejected.double())
    own = torch.stack((torch.cat(chosen), torch.cat(rejected))).to(collective_device())
    gathered = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(gathered, own)
    values = np.empty((2, len(lengths)))
    for share, computed in zip(shares, gathered, strict=True):
        values[:, share] = computed.cpu().numpy()
    return ReferenceLogps(*values)


def _write(folder: Folder, pairs: Pairs, logps: ReferenceLogps, origin: Mapping[str, str]) -> None:
    ids = pa.array((pair["sample_id"] for pair in iterate(pairs, ["sample_id"])), pa.string())
    columns = {"sample_id": ids, "chosen": logps.chosen, "rejected": logps.rejected}
    folder.write_table(TABLE, pa.table(columns, schema=schemas.REFERENCE), {"origin": dict(origin)})


def _read(folder: Folder, pairs: Pairs, origin: Mapping[str, str]) -> ReferenceLogps:
    stored = folder.table_metadata(TABLE).get("origin", {})
    differing = [name for name, value in origin.items() if stored.get(name) != value]
    if differing:
        raise StageError(
            f"the reference log-probabilities in {folder.uri} were computed with other {', '.join(differing)}", REDO
        )
    chosen, rejected, start = np.empty(len(pairs)), np.empty(len(pairs)), 0
    expected = (pair["sample_id"] for pair in iterate(pairs, ["sample_id"]))
    for table in scan(folder, schemas.REFERENCE):
        for sample_id in table["sample_id"].to_pylist():
            if sample_id != next(expected, None):
                raise StageError(f"{folder.uri} has rows of other pairs, such as {sample_id!r}", REDO)
        end = start + table.num_rows
        chosen[start:end], rejected[start:end] = table["chosen"], table["rejected"]
        start = end
    missing = next(expected, None)
    if missing is not None:
        raise StageError(f"{folder.uri} has no row of pair {missing!r}", REDO)
    return ReferenceLogps(chosen, rejected)
