"""Selection written directly after the paper, on rows in memory: the oracle for ``jsfree.stages.shard_selection``."""

import hashlib
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from jsfree.config import Select
from jsfree.stages.sentences import count_repeated

Row = dict[str, Any]


def select(scored: Sequence[Any], settings: Select, seed: int) -> tuple[list[Row], Row] | None:
    """The selected rows and their counts, or None if no pair remains."""
    facts = {"pairs": len(scored), "inverted": sum(pair["inverted"] for pair in scored)}
    facts["inverted_share"] = facts["inverted"] / len(scored) if scored else 0.0
    different = [pair for pair in scored if pair["low"]["text"] != pair["high"]["text"]]
    facts["identical"] = len(scored) - len(different)
    whole = [pair for pair in different if settings.keep_truncated or not _truncated(pair)]
    facts["truncated"] = len(different) - len(whole)
    facts["tied"] = sum(pair["low"]["score"] == pair["high"]["score"] for pair in whole)
    labelled = [pair for pair in whole if not (pair["inverted"] and settings.inverted == "drop")]
    facts["dropped_inverted"] = len(whole) - len(labelled)
    roles = [_with_roles(pair, settings) for pair in labelled]
    distinct = [row for row in roles if settings.repeating == "keep" or not _teaches_repetition(row)]
    facts["repeating"] = len(roles) - len(distinct)
    ranked = sorted(distinct, key=lambda row: (row["gap"], row["sample_id"]))
    for position, row in enumerate(ranked):
        row["rank"], row["split"] = position, position * settings.splits // len(ranked) + 1
    rows = [row for row in ranked if settings.first <= row["split"] <= settings.last]
    if settings.max_pairs is not None:
        rows = sorted(rows, key=lambda row: _ticket(seed, row["sample_id"]))[: settings.max_pairs]
        rows.sort(key=lambda row: row["rank"])
    if settings.inverted == "random":
        rows = [_with_drawn_order(row, seed) for row in rows]
    facts["kept"] = len(rows)
    facts["splits"] = [_described(number, ranked) for number in range(1, settings.splits + 1)]
    return (rows, facts) if rows else None


def _truncated(pair: Row) -> bool:
    return "length" in (pair["low"]["finish"], pair["high"]["finish"])


def _teaches_repetition(row: Row) -> bool:
    roles = ("chosen", "rejected")
    chosen, rejected = (count_repeated([each["text"] for each in row[role]["sentences"]]) for role in roles)
    return chosen > rejected


def _with_roles(pair: Row, settings: Select) -> Row:
    swap = pair["inverted"] and settings.inverted in ("swap", "random")
    chosen, rejected = (pair["high"], pair["low"]) if swap else (pair["low"], pair["high"])
    return {**pair, "gap": chosen["score"] - rejected["score"], "chosen": chosen, "rejected": rejected}


def _with_drawn_order(row: Row, seed: int) -> Row:
    """The row with chosen and rejected by the first bit of a hash; its gap is that of the better caption."""
    is_low_chosen = int(_ticket(seed, f"{row['sample_id']}/chosen").hex()[0], 16) >= 8
    chosen, rejected = ("low", "high") if is_low_chosen else ("high", "low")
    return {**row, "chosen": row[chosen], "rejected": row[rejected]}


def _ticket(seed: int, sample_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{sample_id}".encode(), digest_size=16).digest()


def _described(number: int, ranked: Sequence[Row]) -> Row:
    gaps = [row["gap"] for row in ranked if row["split"] == number]
    low, high, mean = (min(gaps), max(gaps), fmean(gaps)) if gaps else (None, None, None)
    return {"split": number, "pairs": len(gaps), "low_gap": low, "high_gap": high, "mean_gap": mean}
