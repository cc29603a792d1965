"""The receipt of a shard; this module imports nothing, so that the board's process starts fast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Counts and cost of a shard, stored in its metadata; ``rows_excluded`` are images of the evaluation set."""

    shard: int
    rows_in: int
    rows_out: int
    rows_failed: int
    tokens: int
    device_seconds: float
    rows_excluded: int = 0
