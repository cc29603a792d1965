"""The newest pairs of a run: the last rows of the last shard that has been scored or, before that, generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jsfree import schemas
from jsfree.report.pictures import data_uri
from jsfree.run.run import Run
from jsfree.run.streaming import scan_shard

ROLES = ("low", "high")


@dataclass(frozen=True)
class NewestCaption:
    """One caption of a pair; ``score`` is its mean sentence score, or None before it is scored."""

    role: str
    ratio: float | None
    text: str
    score: float | None


@dataclass(frozen=True)
class NewestPair:
    """Two captions of an image; ``inverted``: the provisional loser scores higher (None before it is scored).

    ``picture`` is the image as a ``data:`` URI if pictures were requested and it can be read.
    """

    round: int
    sample_id: str
    image: str
    captions: list[NewestCaption]
    inverted: bool | None
    picture: str | None


def newest_pairs(run: Run, count: int, *, pictures: bool = False) -> list[NewestPair]:
    """The last ``count`` pairs of the newest round that has any, the newest first.

    Raises:
        StorageError: the shard cannot be read.
    """
    for number in reversed(run.rounds() if count else []):
        for name, schema in (("scored", schemas.scored_schema(0)), ("pairs", schemas.PAIRS)):
            shards = run.stage(number, name).shards()
            if shards:
                rows = _last_rows(run, number, name, shards[-1], schema, count, pictures=pictures)
                return [_pair(run, number, row, pictures=pictures) for row in reversed(rows)]
    return []


def _last_rows(
    run: Run, number: int, name: str, shard: int, schema: pa.Schema, count: int, *, pictures: bool
) -> list[dict[str, Any]]:
    fields = ["ratio", "text", *(["score"] if name == "scored" else [])]
    columns = ["sample_id", "inverted", *(f"{role}.{field}" for role in ROLES for field in fields)]
    columns += ["image"] if pictures else ["image.id"]
    rows: list[dict[str, Any]] = []
    for part in scan_shard(run.stage(number, name), shard, schema, columns):
        rows = [*rows, *part.slice(max(0, len(part) - count)).to_pylist()][-count:]
    return rows


def _pair(run: Run, number: int, row: dict[str, Any], *, pictures: bool) -> NewestPair:
    return NewestPair(
        number,
        row["sample_id"],
        row["image"]["id"],
        [NewestCaption(role, row[role]["ratio"], row[role]["text"], row[role].get("score")) for role in ROLES],
        row.get("inverted"),
        data_uri(row["image"], run.config.source) if pictures else None,
    )
