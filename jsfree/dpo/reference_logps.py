"""Log-probabilities under the frozen reference, computed once before the first step.

They are a table of the run (``reference/``), keyed by sample_id, so that no reference model is in memory while
the policy is trained and a resumed run does not compute them again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from jsfree import schemas
from jsfree.dpo.batching import PairBatch, length_of, prefetched
from jsfree.dpo.loss import PairLogps
from jsfree.errors import StageError
from jsfree.schemas import SelectedPair
from jsfree.storage import Folder, shard_name

TABLE = shard_name(0)
ReferenceLogps = Mapping[str, tuple[float, float]]


def origin(model: str, dtype: str, preprocessing: str, pairs: Sequence[SelectedPair]) -> dict[str, str]:
    """What reference log-probabilities depend on, as it is noted with the table.

    Args:
        model: fingerprint of the reference model.
    """
    seen = [
        (
            pair["sample_id"],
            pair["prompt"],
            pair["image"]["sha256"],
            pair["chosen"]["token_ids"],
            pair["rejected"]["token_ids"],
        )
        for pair in pairs
    ]
    digest = hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]
    return {"model": model, "captioner.dtype": dtype, "captioner.preprocessing": preprocessing, "pairs": digest}


def reference_logps(
    folder: Folder,
    pairs: Sequence[SelectedPair],
    origin: Mapping[str, str],
    load: Callable[[Sequence[SelectedPair]], PairBatch],
    forward: Callable[[PairBatch], PairLogps],
    micro: int,
) -> ReferenceLogps:
    """Read the table, or have all workers compute it together and rank 0 publish it.

    Args:
        origin: what the table depends on, as ``origin`` tells it.
        load: makes a batch of pairs.
        forward: the reference: the engine before its first step, or a model.
        micro: pairs in one forward pass.

    Returns:
        sample_id -> (chosen, rejected), sums of log-probabilities.

    Raises:
        StageError: the table that is there was computed of something else.
    """
    rank, device = dist.get_rank(), collective_device()
    present = torch.tensor([folder.exists(TABLE) if rank == 0 else False], device=device).int()
    dist.broadcast(present, src=0)
    if not present.item():
        gathered = _computed(pairs, load, forward, micro)
        if rank == 0:
            table = pa.Table.from_pylist(gathered, schema=schemas.REFERENCE)
            folder.write_table(TABLE, table, {"origin": dict(origin)})
        dist.barrier()
    return _read(folder, pairs, origin)


def collective_device() -> torch.device:
    """Where tensors must be that workers exchange."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def select(table: ReferenceLogps, sample_ids: Sequence[str], device: torch.device) -> PairLogps:
    """The reference's log-probabilities of a batch, (B,) each."""
    chosen, rejected = zip(*(table[sample_id] for sample_id in sample_ids), strict=True)
    return PairLogps(torch.tensor(chosen, device=device), torch.tensor(rejected, device=device))


def _computed(
    pairs: Sequence[SelectedPair],
    load: Callable[[Sequence[SelectedPair]], PairBatch],
    forward: Callable[[PairBatch], PairLogps],
    micro: int,
) -> list[dict[str, Any]]:
    """Each worker takes every world-th pair; all workers make the same number of forward passes (ZeRO-3 needs it)."""
    rank, world = dist.get_rank(), dist.get_world_size()
    alike = sorted(range(len(pairs)), key=lambda index: (-length_of(pairs[index]), index))
    share = -(-len(pairs) // world)
    mine = [pairs[alike[(rank + world * turn) % len(pairs)]] for turn in range(share)]
    rows: list[dict[str, Any]] = []
    for batch in prefetched(load, [mine[start : start + micro] for start in range(0, share, micro)]):
        with torch.no_grad():
            logps = forward(batch)
        told = zip(batch.sample_ids, logps.chosen.tolist(), logps.rejected.tolist(), strict=True)
        rows += [{"sample_id": name, "chosen": chosen, "rejected": rejected} for name, chosen, rejected in told]
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, rows)
    unique = {row["sample_id"]: row for part in everyone for row in part}
    return [unique[pair["sample_id"]] for pair in pairs]


def _read(folder: Folder, pairs: Sequence[SelectedPair], origin: Mapping[str, str]) -> ReferenceLogps:
    noted = folder.table_facts(TABLE).get("origin", {})
    other = [name for name, value in origin.items() if noted.get(name) != value]
    if other:
        raise StageError(
            f"the reference log-probabilities in {folder.uri} were computed with other {', '.join(other)}; --restart"
            " train computes them anew"
        )
    rows = folder.read_table(TABLE, schemas.REFERENCE).to_pylist()
    table = {row["sample_id"]: (row["chosen"], row["rejected"]) for row in rows}
    missing = [pair["sample_id"] for pair in pairs if pair["sample_id"] not in table]
    if missing:
        raise StageError(f"{folder.uri} holds no reference of {missing[0]!r} ({len(missing)} missing); --restart train")
    return table
