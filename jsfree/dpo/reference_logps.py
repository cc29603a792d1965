"""Log-probabilities under the frozen reference, computed once before the first step.

They are a table of the run (``reference/``), keyed by sample_id, so that no reference model is in memory while
the policy is trained and a resumed run does not compute them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from jsfree import schemas
from jsfree.config import Source
from jsfree.dpo.batching import collate, pair_logps
from jsfree.dpo.loss import PairLogps
from jsfree.errors import StageError
from jsfree.models import Captioner
from jsfree.schemas import SelectedPair
from jsfree.storage import Folder, shard_name

TABLE = shard_name(0)
ReferenceLogps = Mapping[str, tuple[float, float]]


def reference_logps(
    folder: Folder,
    pairs: Sequence[SelectedPair],
    captioner: Captioner,
    forward: Callable[..., Any],
    limits: Source,
    micro: int,
) -> ReferenceLogps:
    """Read the table, or have all workers compute it together and rank 0 publish it.

    Args:
        forward: the reference: the engine before its first step, or a model.
        micro: pairs in one forward pass.

    Returns:
        sample_id -> (chosen, rejected), sums of log-probabilities.
    """
    rank = dist.get_rank()
    present = torch.tensor([folder.exists(TABLE) if rank == 0 else False], device=captioner.device).int()
    dist.broadcast(present, src=0)
    if not present.item():
        gathered = _computed(pairs, captioner, forward, limits, micro)
        if rank == 0:
            folder.write_table(TABLE, pa.Table.from_pylist(gathered, schema=schemas.REFERENCE))
        dist.barrier()
    return _read(folder, pairs)


def select(table: ReferenceLogps, sample_ids: Sequence[str], device: torch.device) -> PairLogps:
    """The reference's log-probabilities of a batch, (B,) each."""
    chosen, rejected = zip(*(table[sample_id] for sample_id in sample_ids), strict=True)
    return PairLogps(torch.tensor(chosen, device=device), torch.tensor(rejected, device=device))


def _computed(
    pairs: Sequence[SelectedPair], captioner: Captioner, forward: Callable[..., Any], limits: Source, micro: int
) -> list[dict[str, Any]]:
    """Each worker takes every world-th pair; all workers make the same number of forward passes (ZeRO-3 needs it)."""
    rank, world = dist.get_rank(), dist.get_world_size()
    share = -(-len(pairs) // world)
    mine = [pairs[(rank + world * index) % len(pairs)] for index in range(share)]
    rows: list[dict[str, Any]] = []
    for start in range(0, share, micro):
        batch = collate(mine[start : start + micro], captioner, limits)
        with torch.no_grad():
            logps = pair_logps(forward, batch)
        for sample_id, chosen, rejected in zip(
            batch.sample_ids, logps.chosen.tolist(), logps.rejected.tolist(), strict=True
        ):
            rows.append({"sample_id": sample_id, "chosen": chosen, "rejected": rejected})
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, rows)
    unique = {row["sample_id"]: row for part in everyone for row in part}
    return [unique[pair["sample_id"]] for pair in pairs]


def _read(folder: Folder, pairs: Sequence[SelectedPair]) -> ReferenceLogps:
    rows = folder.read_table(TABLE, schemas.REFERENCE).to_pylist()
    table = {row["sample_id"]: (row["chosen"], row["rejected"]) for row in rows}
    missing = [pair["sample_id"] for pair in pairs if pair["sample_id"] not in table]
    if missing:
        raise StageError(f"{folder.uri} holds no reference of {missing[0]!r} ({len(missing)} missing); --restart train")
    return table
