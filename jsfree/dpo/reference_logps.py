"""Log-probabilities under the frozen reference, computed once before the first step.

They are a table of the run (``reference/``), one row a selected pair in the same order, so that no reference model is
in memory while the policy is trained and a resumed run does not compute them again.
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
from jsfree.dpo.batching import PairBatch, prefetched
from jsfree.dpo.loss import PairLogps
from jsfree.dpo.pairs import Pairs, each
from jsfree.errors import StageError
from jsfree.run.folder import Folder, shard_name
from jsfree.run.streaming import scan

TABLE = shard_name(0)
Load = Callable[[Sequence[int]], PairBatch]
"""Makes a batch of the pairs at some positions."""


@dataclass(frozen=True)
class ReferenceLogps:
    """Sums of log-probabilities under the reference, a row a pair: (chosen, rejected)."""

    values: NDArray[np.float64]

    def of(self, positions: Sequence[int], device: torch.device) -> PairLogps:
        """Those of some pairs, (B,) each."""
        chosen, rejected = torch.tensor(self.values[positions], dtype=torch.float32, device=device).unbind(1)
        return PairLogps(chosen, rejected)


def origin(model: str, dtype: str, preprocessing: str, pairs: str) -> dict[str, str]:
    """What reference log-probabilities depend on, as it is noted with the table.

    Args:
        model: fingerprint of the reference model.
        pairs: digest of the pairs.
    """
    return {"model": model, "captioner.dtype": dtype, "captioner.preprocessing": preprocessing, "pairs": pairs}


def reference_logps(
    folder: Folder,
    pairs: Pairs,
    lengths: NDArray[np.int32],
    origin: Mapping[str, str],
    load: Load,
    forward: Callable[[PairBatch], PairLogps],
    micro: int,
) -> ReferenceLogps:
    """Read the table, or have all workers compute it together and rank 0 publish it.

    Args:
        lengths: ``length_of`` each pair.
        origin: what the table depends on, as ``origin`` makes it.
        load: makes a batch of pairs.
        forward: the reference: the engine before its first step, or a model.
        micro: pairs in one forward pass.

    Raises:
        StageError: the table that is there was computed of something else.
    """
    rank, device = dist.get_rank(), collective_device()
    present = torch.tensor([folder.exists(TABLE) if rank == 0 else False], device=device).int()
    dist.broadcast(present, src=0)
    if not present.item():
        values = _computed(lengths, load, forward, micro)
        if rank == 0:
            _write(folder, pairs, values, origin)
        dist.barrier()
    return _read(folder, pairs, origin)


def collective_device() -> torch.device:
    """Where tensors must be that workers exchange."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _computed(
    lengths: NDArray[np.int32], load: Load, forward: Callable[[PairBatch], PairLogps], micro: int
) -> NDArray[np.float64]:
    """Each worker takes every world-th pair; all workers make the same number of forward passes (ZeRO-3 needs it)."""
    rank, world = dist.get_rank(), dist.get_world_size()
    alike = np.argsort(-lengths, kind="stable")
    turns = np.arange(-(-len(lengths) // world))
    shares = [alike[(each + world * turns) % len(lengths)] for each in range(world)]
    mine = torch.empty(len(turns), 2, dtype=torch.float64)
    parts = (shares[rank][start : start + micro].tolist() for start in range(0, len(turns), micro))
    done = 0
    for batch in prefetched(load, parts):
        with torch.no_grad():
            logps = forward(batch)
        part = mine[done : done + len(logps.chosen)]
        part[:, 0], part[:, 1] = logps.chosen, logps.rejected
        done += len(part)
    mine = mine.to(collective_device())
    everyone = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(everyone, mine)
    values = np.empty((len(lengths), 2))
    for share, found in zip(shares, everyone, strict=True):
        values[share] = found.cpu().numpy()
    return values


def _write(folder: Folder, pairs: Pairs, values: NDArray[np.float64], origin: Mapping[str, str]) -> None:
    ids = pa.array((pair["sample_id"] for pair in each(pairs, ["sample_id"])), pa.string())
    table = pa.table([ids, *values.T], schema=schemas.REFERENCE)
    folder.write_table(TABLE, table, {"origin": dict(origin)})


def _read(folder: Folder, pairs: Pairs, origin: Mapping[str, str]) -> ReferenceLogps:
    noted = folder.table_metadata(TABLE).get("origin", {})
    other = [name for name, value in origin.items() if noted.get(name) != value]
    if other:
        raise StageError(
            f"the reference log-probabilities in {folder.uri} were computed with other {', '.join(other)}",
            "--restart train computes them anew",
        )
    values, start = np.empty((len(pairs), 2)), 0
    expected = (pair["sample_id"] for pair in each(pairs, ["sample_id"]))
    for table in scan(folder, schemas.REFERENCE):
        for sample_id in table["sample_id"].to_pylist():
            if sample_id != next(expected, None):
                raise StageError(f"{folder.uri} holds rows of other pairs, such as {sample_id!r}", "--restart train")
        values[start : start + table.num_rows] = np.stack((table["chosen"], table["rejected"]), 1)
        start += table.num_rows
    missing = next(expected, None)
    if missing is not None:
        raise StageError(f"{folder.uri} holds no reference of {missing!r}", "--restart train")
    return ReferenceLogps(values)
