"""Selects preference pairs from scored pairs by their score gaps (paper, section 3.4; Algorithm 1, line 12).

Pure functions, whose results do not depend on the order of the input. ``choose_pairs`` needs only a few columns of all
pairs (``PairColumns``). ``shard_selection`` applies it to the shards of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jsfree import schemas
from jsfree.config import Select
from jsfree.errors import StageError
from jsfree.run.keyed_order import order_key
from jsfree.schemas import HIGH, LOW, ScoredPair, SelectedPair
from jsfree.stages.agreement import agreement, disagree, joint_differences, spread
from jsfree.stages.sentences import count_repeated


@dataclass(frozen=True)
class PairColumns:
    """The columns of scored pairs that selection depends on.

    Attributes:
        differences_PS: score of ``low`` minus score of ``high``, (pairs, scorers).
        inverted: whether the provisional loser has the higher score, by all scorers.
        identical: whether the two captions are equal.
        truncated: whether a caption ended at the length limit.
        low_repeats, high_repeats: number of repeated sentences in each caption; 0 unless ``repeating`` is ``drop``.
    """

    sample_ids: pa.LargeStringArray
    differences_PS: NDArray[np.float64]
    inverted: NDArray[np.bool_]
    identical: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    low_repeats: NDArray[np.int32]
    high_repeats: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.inverted)

    @classmethod
    def from_table(cls, scored: pa.Table, settings: Select) -> PairColumns:
        """Convert a table with at least the columns ``required_columns(settings)``."""
        low, high = scored["low"], scored["high"]
        flags = identical_and_truncated(scored)
        count = _count_repeats if settings.repeating == "drop" else lambda caption: np.zeros(len(caption), np.int32)
        return cls(
            sample_ids=scored["sample_id"].cast(pa.large_string()).combine_chunks(),
            differences_PS=score_differences(scored),
            inverted=scored["inverted"].to_numpy(),
            identical=flags.identical.to_numpy(),
            truncated=flags.truncated.to_numpy(),
            low_repeats=count(low),
            high_repeats=count(high),
        )

    @classmethod
    def concatenate(cls, parts: Iterable[PairColumns]) -> PairColumns:
        """Concatenate the columns of several tables."""
        every = list(parts) or [cls.from_table(schemas.SCORED.empty_table(), Select())]
        columns = {field.name: [getattr(part, field.name) for part in every] for field in fields(cls)}
        sample_ids = pa.chunked_array(columns.pop("sample_ids")).combine_chunks()
        return cls(sample_ids, **{name: np.concatenate(arrays) for name, arrays in columns.items()})


class PairFlags(NamedTuple):
    """For each pair, whether its captions are equal, and whether one of them ended at the length limit."""

    identical: pa.ChunkedArray
    truncated: pa.ChunkedArray


def identical_and_truncated(pairs: pa.Table) -> PairFlags:
    """Compute the flags of pairs.

    Args:
        pairs: a table with ``text`` and ``finish`` of ``low`` and ``high``.
    """
    captions = pairs["low"], pairs["high"]
    return PairFlags(
        identical=pc.equal(*(pc.struct_field(caption, "text") for caption in captions)),
        truncated=pc.or_(*(pc.equal(pc.struct_field(caption, "finish"), "length") for caption in captions)),
    )


def score_differences(scored: pa.Table) -> NDArray[np.float64]:
    """Score of ``low`` minus score of ``high`` by each scorer, (pairs, scorers).

    Args:
        scored: a table with ``score`` of ``low`` and ``high`` and, of a second scorer, ``second_low`` and
            ``second_high``.
    """
    prefixes = ("", "second_") if "second_low" in scored.column_names else ("",)
    scores = ([pc.struct_field(scored[prefix + role], "score") for role in (LOW, HIGH)] for prefix in prefixes)
    return np.stack([low.to_numpy() - high.to_numpy() for low, high in scores], axis=-1)


def required_columns(settings: Select) -> tuple[str, ...]:
    """Columns of scored pairs that ``choose_pairs`` needs; sentences are needed only to count repetitions."""
    captions = ("text", "finish", "score", *(["sentences"] if settings.repeating == "drop" else []))
    second = ("second_low.score", "second_high.score")
    return ("sample_id", "inverted", *(f"{role}.{name}" for role in ("low", "high") for name in captions), *second)


@dataclass(frozen=True)
class PairChoice:
    """The selected pairs in ascending order of their gaps, as indices into the scored pairs.

    Attributes:
        indices: positions of the selected pairs among all scored pairs.
        ranks: rank of each selected pair among all sorted pairs, from 0.
        splits: split of each selected pair, from 1.
        gaps: gap of each selected pair.
        facts: the numbers ``pairs`` (all), ``inverted`` and ``inverted_share`` (of all pairs), ``identical``
            (dropped), ``truncated`` (dropped), ``tied`` (remaining pairs with equal scores), ``dropped_inverted``,
            ``repeating`` (dropped, because the chosen caption repeats more sentences) and ``kept``; and ``splits``,
            with ``split``, ``pairs``, ``low_gap``, ``high_gap`` and ``mean_gap`` (null if empty) of each split. With
            two scorers also ``disagreed`` (dropped), and ``agreement`` (``stages.agreement.Agreement``).
    """

    indices: NDArray[np.int64]
    ranks: NDArray[np.int64]
    splits: NDArray[np.int64]
    gaps: NDArray[np.float64]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Selection:
    """The selected pairs themselves, with the facts of a ``PairChoice``."""

    rows: list[SelectedPair]
    facts: dict[str, Any]


def choose_pairs(pairs: PairColumns, settings: Select, seed: int) -> PairChoice:
    """Assign chosen and rejected by score, sort the pairs by gap, and keep some of the splits.

    Pairs of identical captions are dropped first, then pairs with a truncated caption unless ``keep_truncated``, then,
    with ``repeating: drop``, pairs whose chosen caption repeats more sentences than the rejected one. The chosen
    caption is the provisional winner (``low``) unless the pair is inverted and ``settings.inverted`` is ``swap``. The
    gap is chosen score - rejected score, which is negative only for inverted pairs with ``inverted: keep``. Sizes of
    splits differ by at most one. ``max_pairs`` selects by a hash of (seed, sample_id). ``inverted: random`` gives the
    same choice as ``swap``; ``assign_roles`` then assigns chosen and rejected at random.

    With two scorers, pairs on which they disagree are dropped as well, unless ``inverted`` is ``keep``, and the gap is
    that of ``stages.agreement.joint_differences``.

    Raises:
        StageError: no pair remains.
    """
    swapped = pairs.inverted & (settings.inverted in ("swap", "random"))
    differences = joint_differences(pairs.differences_PS, spread(pairs.differences_PS[~pairs.identical]))
    gaps = np.where(swapped, -differences, differences)
    usable, facts = _filter_pairs(pairs, swapped, settings)
    choice = choose_splits(usable, gaps, pairs.sample_ids, settings, seed)
    facts |= choice.facts
    if not len(choice.ranks):
        raise _no_pairs_remain(facts, settings)
    return replace(choice, facts=facts)


def choose_splits(
    usable: NDArray[np.int64],
    gaps: NDArray[np.float64],
    sample_ids: pa.LargeStringArray,
    settings: Select,
    seed: int,
) -> PairChoice:
    """Sort the ``usable`` pairs by gap, cut them into splits and keep some of these, as ``choose_pairs``.

    ``facts`` has ``kept`` and ``splits`` only. It may be that no pair is kept.
    """
    order = usable[_sort_by_gap(gaps[usable], sample_ids.take(pa.array(usable)))]
    splits = np.arange(len(order)) * settings.splits // max(1, len(order)) + 1
    ranks = np.flatnonzero((settings.first <= splits) & (splits <= settings.last))
    if settings.max_pairs is not None and len(ranks) > settings.max_pairs:
        shuffled = _keyed_permutation(sample_ids.take(pa.array(order[ranks])), seed)
        ranks = np.sort(ranks[shuffled[: settings.max_pairs]])
    numbers = range(1, settings.splits + 1)
    described = [_describe_split(number, gaps[order[splits == number]]) for number in numbers]
    facts = {"kept": len(ranks), "splits": described}
    chosen = order[ranks]
    return PairChoice(indices=chosen, ranks=ranks, splits=splits[ranks], gaps=gaps[chosen], facts=facts)


def select_pairs(scored: Sequence[ScoredPair], settings: Select, seed: int) -> Selection:
    """Apply ``choose_pairs`` to rows in memory.

    Raises:
        StageError: no pair remains.
    """
    scorers = 2 if scored and "second_low" in scored[0] else 1
    table = pa.Table.from_pylist(list(scored), schema=schemas.scored_schema(0, scorers))
    choice = choose_pairs(PairColumns.from_table(table, settings), settings, seed)
    rows = [assign_roles(scored[index], settings, seed) for index in choice.indices]
    placed = zip(rows, choice.ranks.tolist(), choice.splits.tolist(), choice.gaps.tolist(), strict=True)
    for row, rank, split, gap in placed:
        row["rank"], row["split"], row["gap"] = rank, split, gap
    return Selection(rows, choice.facts)


def is_high_chosen(sample_id: str, inverted: bool, settings: Select, seed: int) -> bool:
    """Whether the chosen caption of a pair is the provisional loser, ``high``.

    With ``inverted: random``, this is a fair coin that depends only on the seed and the sample id.
    """
    if settings.inverted == "random":
        return order_key(seed, f"{sample_id}/chosen")[0] < 128
    return inverted and settings.inverted == "swap"


def assign_roles(pair: ScoredPair, settings: Select, seed: int) -> SelectedPair:
    """Add ``chosen``, ``rejected`` and their gap to a pair, without a rank.

    The gap is chosen score - rejected score by the first scorer; with ``inverted: random``, its absolute value, by
    which pairs are sorted.
    """
    swap = is_high_chosen(pair["sample_id"], pair["inverted"], settings, seed)
    chosen, rejected = (pair["high"], pair["low"]) if swap else (pair["low"], pair["high"])
    difference = chosen["score"] - rejected["score"]
    gap = abs(difference) if settings.inverted == "random" else difference
    return SelectedPair(**{**pair, "gap": gap, "chosen": chosen, "rejected": rejected, "rank": -1, "split": 0})


def count_pairs(pairs: PairColumns, settings: Select) -> dict[str, Any]:
    """The facts about all pairs that do not depend on splits; see ``PairChoice``."""
    return _filter_pairs(pairs, np.zeros(len(pairs), bool), settings)[1]


def _filter_pairs(
    pairs: PairColumns, swapped: NDArray[np.bool_], settings: Select
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return the indices of the pairs to sort, and the numbers of dropped pairs."""
    inverted = int(pairs.inverted.sum())
    different = ~pairs.identical
    whole = different & (~pairs.truncated | settings.keep_truncated)
    ordered = whole & ~(pairs.inverted & (settings.inverted == "drop"))
    labelled = ordered & ~(disagree(pairs.differences_PS) & (settings.inverted != "keep"))
    difference = pairs.low_repeats - pairs.high_repeats
    repeating = np.where(swapped, -difference, difference) > 0  # chosen - rejected
    kept = labelled & ~repeating
    facts: dict[str, Any] = {
        "pairs": len(pairs),
        "inverted": inverted,
        "inverted_share": inverted / len(pairs) if len(pairs) else 0.0,
        "identical": int(pairs.identical.sum()),
        "truncated": int(different.sum() - whole.sum()),
        "tied": int((whole & (pairs.differences_PS == 0).all(1)).sum()),
        "dropped_inverted": int(whole.sum() - ordered.sum()),
        "repeating": int(labelled.sum() - kept.sum()),
    }
    if pairs.differences_PS.shape[1] > 1:
        facts["disagreed"] = int(ordered.sum() - labelled.sum())
        facts["agreement"] = agreement(pairs.differences_PS[different]).as_json()
    return np.flatnonzero(kept), facts


def _sort_by_gap(gaps: NDArray[np.float64], sample_ids: pa.LargeStringArray) -> NDArray[np.int64]:
    """Return the indices that sort by ascending gap, then by id."""
    table = pa.table({"gap": gaps, "sample_id": sample_ids})
    order: NDArray[np.int64] = pc.sort_indices(
        table, sort_keys=[("gap", "ascending"), ("sample_id", "ascending")]
    ).to_numpy()
    return order


def _keyed_permutation(sample_ids: pa.LargeStringArray, seed: int) -> NDArray[np.int64]:
    """Return the indices that sort by ``order_key``."""
    keys = b"".join(order_key(seed, sample_id) for sample_id in sample_ids)
    halves = np.frombuffer(keys, ">u8").reshape(-1, 2)
    order: NDArray[np.int64] = np.lexsort((halves[:, 1], halves[:, 0]))
    return order


def _count_repeats(caption: pa.ChunkedArray) -> NDArray[np.int32]:
    texts = (
        [sentence["text"] for sentence in sentences] for sentences in pc.struct_field(caption, "sentences").to_pylist()
    )
    return np.fromiter(map(count_repeated, texts), np.int32, len(caption))


def _describe_split(number: int, gaps: NDArray[np.float64]) -> dict[str, Any]:
    """Summarize a split from its gaps in ascending order."""
    low, high, mean = (float(gaps[0]), float(gaps[-1]), fmean(gaps)) if len(gaps) else (None, None, None)
    return {"split": number, "pairs": len(gaps), "low_gap": low, "high_gap": high, "mean_gap": mean}


def _no_pairs_remain(facts: dict[str, Any], settings: Select) -> StageError:
    sorted_pairs = sum(split["pairs"] for split in facts["splits"])
    disagreed = f" the scorers disagree about {facts['disagreed']}," if "disagreed" in facts else ""
    return StageError(
        f"no pair is left to train on: of {facts['pairs']} pairs, {facts['identical']} have identical captions,"
        f" {facts['truncated']} have a truncated caption, {facts['dropped_inverted']} are inverted,{disagreed}"
        f" {facts['repeating']} have a chosen caption that repeats more sentences, and none of the other"
        f" {sorted_pairs} is in splits {settings.first} to {settings.last} of {settings.splits}",
        "use more images, raise 'generate.decoding.max_new_tokens', set 'select.keep_truncated',"
        " or widen 'select.first' and 'select.last'",
    )
