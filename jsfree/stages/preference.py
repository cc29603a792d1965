"""From scored pairs to preference pairs: inversion, order by gap, splits (paper, section 3.4; Algorithm 1, line 12).

Pure: no files, no tensors, and no dependence on the order of the input. A choice needs a few columns of all pairs
(``PairColumns``); ``selection.py`` reads them from a run and writes the pairs that are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jsfree import schemas
from jsfree.config import Select
from jsfree.errors import StageError
from jsfree.run.keyed_order import ticket
from jsfree.schemas import ScoredPair, SelectedPair
from jsfree.stages.sentences import repeated


@dataclass(frozen=True)
class PairColumns:
    """What a choice needs to know of every scored pair; ``low`` and ``high`` are the captions' scores.

    ``repeats_low`` and ``repeats_high`` count the sentences that a caption repeats; zeros where nobody asks.
    """

    sample_ids: pa.LargeStringArray
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    inverted: NDArray[np.bool_]
    identical: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    repeats_low: NDArray[np.int32]
    repeats_high: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.low)

    @classmethod
    def of(cls, scored: pa.Table, settings: Select) -> PairColumns:
        """The columns of a table that has at least ``columns_read(settings)``."""
        low, high = scored["low"], scored["high"]
        identical, truncated = identical_and_truncated(scored)
        count = _repeats if settings.repeating == "drop" else lambda caption: np.zeros(len(caption), np.int32)
        return cls(
            scored["sample_id"].cast(pa.large_string()).combine_chunks(),
            pc.struct_field(low, "score").to_numpy(),
            pc.struct_field(high, "score").to_numpy(),
            scored["inverted"].to_numpy(),
            identical.to_numpy(),
            truncated.to_numpy(),
            count(low),
            count(high),
        )

    @classmethod
    def joined(cls, parts: Iterable[PairColumns]) -> PairColumns:
        """The columns of several tables, one behind another."""
        every = [cls.of(schemas.SCORED.empty_table(), Select()), *parts]
        ids = pa.chunked_array([part.sample_ids for part in every]).combine_chunks()
        others = (np.concatenate([getattr(part, each.name) for part in every]) for each in fields(cls)[1:])
        return cls(ids, *others)


def identical_and_truncated(pairs: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """For each pair, whether its captions are the same text, and whether one of them ended at the length limit.

    Args:
        pairs: a table with ``text`` and ``finish`` of ``low`` and ``high``.
    """
    captions = pairs["low"], pairs["high"]
    identical = pc.equal(*(pc.struct_field(caption, "text") for caption in captions))
    truncated = pc.or_(*(pc.equal(pc.struct_field(caption, "finish"), "length") for caption in captions))
    return identical, truncated


def columns_read(settings: Select) -> tuple[str, ...]:
    """The columns of scored pairs that a choice is made by; sentences are read only where repetition counts."""
    captions = ("text", "finish", "score", *(["sentences"] if settings.repeating == "drop" else []))
    return ("sample_id", "inverted", *(f"{role}.{name}" for role in ("low", "high") for name in captions))


@dataclass(frozen=True)
class Choice:
    """The pairs that are trained on, in ascending order of their gaps, and what became of the others.

    ``rows`` are their positions among all scored pairs, ``ranks`` and ``splits`` their columns of these names.
    ``facts``: counts ``pairs`` (all), ``inverted`` and ``inverted_share`` (of all pairs), ``identical`` (dropped),
    ``truncated`` (dropped), ``tied`` (equal scores, of those remaining), ``dropped_inverted``, ``repeating`` (dropped
    for a chosen caption that repeats more sentences), ``kept``; and
    ``splits``: for every split ``split``, ``pairs``, ``low_gap``, ``high_gap``, ``mean_gap`` (null where empty).
    """

    rows: NDArray[np.int64]
    ranks: NDArray[np.int64]
    splits: NDArray[np.int64]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Selection:
    """The pairs that are trained on, whole, and the facts of their ``Choice``."""

    rows: list[SelectedPair]
    facts: dict[str, Any]


def choose(pairs: PairColumns, settings: Select, seed: int) -> Choice:
    """Label the pairs by their scores, sort them by gap, and keep some of the splits.

    Dropped first are pairs of identical captions, those with a truncated one unless ``keep_truncated``, and under
    ``repeating: drop`` those whose chosen caption repeats more sentences than the rejected one. ``chosen`` is
    the provisional winner (``low``) unless the pair is inverted and ``settings.inverted`` is ``swap``. The gap is
    chosen score - rejected score; negative only for inverted pairs under ``keep``. ``ranks`` count from 0 over all
    sorted pairs, ``splits`` from 1; sizes of splits differ by one at most. ``max_pairs`` draws by (seed, sample_id).

    Raises:
        StageError: no pair is left.
    """
    swapped = pairs.inverted & (settings.inverted == "swap")
    gaps = np.where(swapped, pairs.high - pairs.low, pairs.low - pairs.high)
    usable, facts = _usable(pairs, swapped, settings)
    order = usable[_ascending(gaps[usable], pairs.sample_ids.take(pa.array(usable)))]
    splits = np.arange(len(order)) * settings.splits // max(1, len(order)) + 1
    ranks = np.flatnonzero((settings.first <= splits) & (splits <= settings.last))
    if settings.max_pairs is not None and len(ranks) > settings.max_pairs:
        tickets = _tickets(pairs.sample_ids.take(pa.array(order[ranks])), seed)
        ranks = np.sort(ranks[tickets[: settings.max_pairs]])
    facts["kept"] = len(ranks)
    facts["splits"] = [_described(number, gaps[order[splits == number]]) for number in range(1, settings.splits + 1)]
    if not len(ranks):
        raise StageError(_nothing_left(facts, settings))
    return Choice(order[ranks], ranks, splits[ranks], facts)


def select_pairs(scored: Sequence[ScoredPair], settings: Select, seed: int) -> Selection:
    """``choose`` among pairs that are in memory.

    Raises:
        StageError: no pair is left.
    """
    table = pa.Table.from_pylist(list(scored), schema=schemas.SCORED)
    choice = choose(PairColumns.of(table, settings), settings, seed)
    rows = [with_roles(scored[row], settings) for row in choice.rows]
    for row, rank, split in zip(rows, choice.ranks.tolist(), choice.splits.tolist(), strict=True):
        row["rank"], row["split"] = rank, split
    return Selection(rows, choice.facts)


def with_roles(pair: ScoredPair, settings: Select) -> SelectedPair:
    """A pair with chosen and rejected, not ranked yet."""
    swap = pair["inverted"] and settings.inverted == "swap"
    chosen, rejected = (pair["high"], pair["low"]) if swap else (pair["low"], pair["high"])
    gap = chosen["score"] - rejected["score"]
    return SelectedPair(**{**pair, "gap": gap, "chosen": chosen, "rejected": rejected, "rank": -1, "split": 0})


def _usable(
    pairs: PairColumns, swapped: NDArray[np.bool_], settings: Select
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """The positions of the pairs that can be ranked, and counts of those that cannot."""
    inverted = int(pairs.inverted.sum())
    different = ~pairs.identical
    whole = different & (~pairs.truncated | settings.keep_truncated)
    labelled = whole & ~(pairs.inverted & (settings.inverted == "drop"))
    more = np.where(swapped, pairs.repeats_high > pairs.repeats_low, pairs.repeats_low > pairs.repeats_high)
    distinct = labelled & ~more
    facts = {
        "pairs": len(pairs),
        "inverted": inverted,
        "inverted_share": inverted / len(pairs) if len(pairs) else 0.0,
        "identical": int(pairs.identical.sum()),
        "truncated": int(different.sum() - whole.sum()),
        "tied": int((whole & (pairs.low == pairs.high)).sum()),
        "dropped_inverted": int(whole.sum() - labelled.sum()),
        "repeating": int(labelled.sum() - distinct.sum()),
    }
    return np.flatnonzero(distinct), facts


def _ascending(gaps: NDArray[np.float64], sample_ids: pa.LargeStringArray) -> NDArray[np.int64]:
    """The order of the gaps; ties in the order of their ids."""
    table = pa.table({"gap": gaps, "sample_id": sample_ids})
    order: NDArray[np.int64] = pc.sort_indices(
        table, sort_keys=[("gap", "ascending"), ("sample_id", "ascending")]
    ).to_numpy()
    return order


def _tickets(sample_ids: pa.LargeStringArray, seed: int) -> NDArray[np.int64]:
    """Positions of the pairs in the order in which they are drawn."""
    drawn = b"".join(ticket(seed, sample_id) for sample_id in sample_ids)
    halves = np.frombuffer(drawn, ">u8").reshape(-1, 2)
    order: NDArray[np.int64] = np.lexsort((halves[:, 1], halves[:, 0]))
    return order


def _repeats(caption: pa.ChunkedArray) -> NDArray[np.int32]:
    texts = (
        [sentence["text"] for sentence in sentences] for sentences in pc.struct_field(caption, "sentences").to_pylist()
    )
    return np.fromiter(map(repeated, texts), np.int32, len(caption))


def _described(number: int, gaps: NDArray[np.float64]) -> dict[str, Any]:
    """A split, of its gaps in ascending order."""
    low, high, mean = (float(gaps[0]), float(gaps[-1]), fmean(gaps)) if len(gaps) else (None, None, None)
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
