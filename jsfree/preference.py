"""From scored pairs to preference pairs: inversion, order by gap, splits (paper, section 3.4; Algorithm 1, line 12).

Pure: no files, no tensors, and no dependence on the order of the input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from jsfree.config import Select
from jsfree.errors import StageError
from jsfree.schemas import ScoredCaption, ScoredPair, SelectedPair
from jsfree.sentences import repeated


@dataclass(frozen=True)
class Selection:
    """The pairs that are trained on, in the order of their gaps, and what became of the others.

    ``facts``: counts ``pairs`` (all), ``inverted`` and ``inverted_share`` (of all pairs), ``identical`` (dropped),
    ``truncated`` (dropped), ``tied`` (equal scores, of those left), ``dropped_inverted``, ``repeating`` (dropped
    for a chosen caption that repeats more sentences), ``kept``; and
    ``splits``: for every split ``split``, ``pairs``, ``low_gap``, ``high_gap``, ``mean_gap`` (null where empty).
    """

    rows: list[SelectedPair]
    facts: dict[str, Any]


def select_pairs(scored: Sequence[ScoredPair], settings: Select, seed: int) -> Selection:
    """Label the pairs by their scores, sort them by gap, and keep some of the splits.

    Dropped first are pairs of identical captions, those with a truncated one unless ``keep_truncated``, and under
    ``repeating: drop`` those whose chosen caption repeats more sentences than the rejected one. ``chosen`` is
    the provisional winner (``low``) unless the pair is inverted and ``settings.inverted`` is ``swap``. ``gap`` is
    chosen score - rejected score; negative only for inverted pairs under ``keep``. ``rank`` counts from 0 over all
    sorted pairs, ``split`` from 1; sizes of splits differ by one at most. ``max_pairs`` draws by (seed, sample_id).

    Raises:
        StageError: no pair is left.
    """
    facts: dict[str, Any] = {"pairs": len(scored), "inverted": sum(pair["inverted"] for pair in scored)}
    facts["inverted_share"] = facts["inverted"] / len(scored) if scored else 0.0
    different = [pair for pair in scored if pair["low"]["text"] != pair["high"]["text"]]
    facts["identical"] = len(scored) - len(different)
    whole = [pair for pair in different if settings.keep_truncated or not _truncated(pair)]
    facts["truncated"] = len(different) - len(whole)
    facts["tied"] = sum(pair["low"]["score"] == pair["high"]["score"] for pair in whole)
    labelled = [pair for pair in whole if not (pair["inverted"] and settings.inverted == "drop")]
    facts["dropped_inverted"] = len(whole) - len(labelled)
    roles = [with_roles(pair, settings) for pair in labelled]
    distinct = [row for row in roles if settings.repeating == "keep" or not _teaches_repetition(row)]
    facts["repeating"] = len(roles) - len(distinct)
    ranked = _ranked(distinct, settings)
    rows = _drawn([row for row in ranked if settings.first <= row["split"] <= settings.last], settings, seed)
    facts["kept"] = len(rows)
    facts["splits"] = [_described(number, ranked) for number in range(1, settings.splits + 1)]
    if not rows:
        raise StageError(_nothing_left(facts, settings))
    return Selection(rows, facts)


def _truncated(pair: ScoredPair) -> bool:
    return "length" in (pair["low"]["finish"], pair["high"]["finish"])


def _teaches_repetition(row: SelectedPair) -> bool:
    return _repeated(row["chosen"]) > _repeated(row["rejected"])


def _repeated(caption: ScoredCaption) -> int:
    return repeated([sentence["text"] for sentence in caption["sentences"]])


def _ranked(roles: Sequence[SelectedPair], settings: Select) -> list[SelectedPair]:
    """Pairs in ascending order of their gaps; ties in the order of their ids."""
    rows = sorted(roles, key=lambda row: (row["gap"], row["sample_id"]))
    for position, row in enumerate(rows):
        row["rank"] = position
        row["split"] = position * settings.splits // len(rows) + 1
    return rows


def with_roles(pair: ScoredPair, settings: Select) -> SelectedPair:
    """A pair with chosen and rejected, not ranked yet."""
    swap = pair["inverted"] and settings.inverted == "swap"
    chosen, rejected = (pair["high"], pair["low"]) if swap else (pair["low"], pair["high"])
    gap = chosen["score"] - rejected["score"]
    return SelectedPair(**{**pair, "gap": gap, "chosen": chosen, "rejected": rejected, "rank": -1, "split": 0})


def _drawn(rows: list[SelectedPair], settings: Select, seed: int) -> list[SelectedPair]:
    if settings.max_pairs is None or len(rows) <= settings.max_pairs:
        return rows
    drawn = sorted(rows, key=lambda row: _ticket(seed, row["sample_id"]))[: settings.max_pairs]
    return sorted(drawn, key=lambda row: row["rank"])


def _ticket(seed: int, sample_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{sample_id}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _described(number: int, ranked: Sequence[SelectedPair]) -> dict[str, Any]:
    gaps = [row["gap"] for row in ranked if row["split"] == number]
    low, high, mean = (min(gaps), max(gaps), fmean(gaps)) if gaps else (None, None, None)
    return {"split": number, "pairs": len(gaps), "low_gap": low, "high_gap": high, "mean_gap": mean}


def _nothing_left(facts: dict[str, Any], settings: Select) -> str:
    sorted_pairs = sum(split["pairs"] for split in facts["splits"])
    return (
        f"no pair is left to train on: of {facts['pairs']} pairs {facts['identical']} have identical captions,"
        f" {facts['truncated']} a truncated one, {facts['dropped_inverted']} are inverted and dropped,"
        f" {facts['repeating']} have a chosen caption that repeats more sentences; of the other"
        f" {sorted_pairs} none is in splits {settings.first} to {settings.last} of {settings.splits};"
        " take more images, raise 'generate.decoding.max_new_tokens', set 'select.keep_truncated',"
        " or widen 'select.first' and 'select.last'"
    )
