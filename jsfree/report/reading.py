"""Reads the tables and files of a run for the page, shard by shard.

A run may hold gigabytes of images and millions of pairs: tables are reduced to a few numbers per row while they are
read, and whole rows are read again only for the scenes that are shown. Missing parts of a run read as empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jsfree import schemas
from jsfree.evaluation.rounds_stop import good_rounds
from jsfree.run.folder import Folder, shard_name
from jsfree.run.run import Manifest, Run
from jsfree.run.stages import PARTS
from jsfree.run.streaming import scan, scan_shard
from jsfree.schemas import ImageRef, ScoredCaptionRow
from jsfree.stages.agreement import disagree, joint_differences, spread
from jsfree.stages.pair_selection import identical_and_truncated, score_differences

SUMMARY_COLUMNS = (
    *("inverted", "low.text", "low.finish", "low.score", "high.text", "high.finish", "high.score"),
    *("second_low.score", "second_high.score"),
)
MAX_COSINES = 2**20
"""Cosines kept in memory."""


@dataclass(frozen=True)
class Position:
    """The position of a row: shard number and row within the shard."""

    shard: int
    row: int


@dataclass(frozen=True)
class PairSummary:
    """The columns of a scored pair that decide about its selection.

    ``gap`` is as in ``Scored``; ``truncated``: a caption hit the length limit; ``disagreed``: two scorers disagree
    about the order.
    """

    sample_id: str
    position: Position
    gap: float
    inverted: bool
    identical: bool
    truncated: bool
    disagreed: bool = False


@dataclass(frozen=True)
class Scored:
    """All scored pairs of a round, a few bytes each, and the CLIP cosines of their sentences (a sample if many).

    Cosines are those of the first scorer. ``gaps`` are absolute differences of the mean cosines or, with two scorers,
    the absolute joint differences, for which ``spread_S`` has the scorers' spreads (``stages.agreement``).
    """

    gaps: NDArray[np.float64]
    inverted: NDArray[np.bool_]
    identical: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    disagreed: NDArray[np.bool_]
    cosines: NDArray[np.float64]
    spread_S: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.gaps)


@dataclass(frozen=True)
class ComposedSummary:
    """How the rejected caption of a composed pair was made (``Provenance.edit``)."""

    sample_id: str
    position: Position
    edit: str


class EvenSample:
    """An even sample of a stream of numbers: all of them up to ``limit``, then every second, every fourth..."""

    def __init__(self, limit: int = MAX_COSINES) -> None:
        self._limit = limit
        self._stride, self._seen = 1, 0
        self._kept: NDArray[np.float64] = np.empty(0)

    def add(self, values: NDArray[np.float64]) -> None:
        """Add the next numbers of the stream."""
        self._kept = np.concatenate((self._kept, values[-self._seen % self._stride :: self._stride]))
        self._seen += len(values)
        while len(self._kept) > self._limit:
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    @property
    def values(self) -> NDArray[np.float64]:
        """The sample, in the order of the stream."""
        return self._kept


class SampleIds:
    """A set of ids, stored as hashes of eight bytes each."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._hashes = np.sort(np.fromiter(map(hash, ids), np.int64))

    def __contains__(self, sample_id: object) -> bool:
        at = int(np.searchsorted(self._hashes, hash(sample_id)))
        return at < len(self._hashes) and bool(self._hashes[at] == hash(sample_id))


@dataclass(frozen=True)
class Caption:
    """An evaluation caption without its image, which is read from ``position``."""

    row: ScoredCaptionRow
    position: Position


@dataclass(frozen=True)
class Failure:
    """The number of rows that failed in one stage with one kind of error, and one of the messages."""

    stage: str
    kind: str
    rows: int
    example: str


@dataclass(frozen=True)
class StageCost:
    """A finished stage of a round."""

    round: int
    stage: str
    manifest: Manifest


def finished_rounds(run: Run) -> list[int]:
    """Numbers of the rounds with scored pairs or metrics."""
    return [number for number in run.rounds() if run.manifest(number, "scored") or evaluated(run, number)]


def evaluated_rounds(run: Run) -> list[int]:
    """The rounds with metrics whose models the stop rule has not discarded, in order."""
    return [number for number in good_rounds(run, run.rounds()) if evaluated(run, number)]


def evaluated(run: Run, number: int) -> bool:
    """Whether round ``number`` has metrics of either kind."""
    return any(run.round(number).exists(name) for name in ("metrics.json", "label_free.json"))


def json_or_empty(folder: Folder, name: str) -> dict[str, Any]:
    """Read a JSON object; an empty one if the file is missing."""
    return dict(folder.read_json(name)) if folder.exists(name) else {}


def training_log(run: Run, number: int) -> list[dict[str, Any]]:
    """The logged optimizer steps of a round, oldest first."""
    folder = run.stage(number, "train")
    return list(folder.read_json("steps.json")) if folder.exists("steps.json") else []


def scored_pairs(folder: Folder, scorers: int = 1) -> Scored:
    """The numbers of all scored pairs of a round, by so many scorers."""
    parts: list[list[NDArray[Any]]] = [[np.empty((0, scorers))], *([np.empty(0, np.bool_)] for _ in range(3))]
    cosines = EvenSample()
    columns = [*SUMMARY_COLUMNS, "low.sentences", "high.sentences"]
    for table in scan(folder, schemas.scored_schema(0, scorers), columns):
        for part, values in zip(parts, (score_differences(table), *_flags(table)), strict=True):
            part.append(values)
        for caption in (table["low"], table["high"]):
            cosines.add(_cosines(caption))
    differences_PS, inverted, identical, truncated = map(np.concatenate, parts)
    spread_S = spread(differences_PS[~identical])
    gaps, disagreed = np.abs(joint_differences(differences_PS, spread_S)), disagree(differences_PS)
    return Scored(gaps, inverted, identical, truncated, disagreed, cosines.values, spread_S)


def pair_summaries(folder: Folder, spread_S: NDArray[np.float64]) -> Iterator[PairSummary]:
    """Yield the summaries of all scored pairs of a round; ``spread_S`` is that of ``Scored``."""
    schema = schemas.scored_schema(0, len(spread_S))
    for shard in folder.shards():
        positions = (Position(shard, row) for row in count())
        for table in scan_shard(folder, shard, schema, ["sample_id", *SUMMARY_COLUMNS]):
            differences_PS = score_differences(table)
            gaps = np.abs(joint_differences(differences_PS, spread_S))
            columns = [values.tolist() for values in (gaps, *_flags(table), disagree(differences_PS))]
            for position, sample_id, *rest in zip(positions, table["sample_id"].to_pylist(), *columns, strict=False):
                yield PairSummary(sample_id, position, *rest)


def selected_ids(folder: Folder) -> SampleIds:
    """The ids of all selected pairs."""
    parts = scan(folder, schemas.SELECTED, ["sample_id"])
    return SampleIds(sample_id for table in parts for sample_id in table["sample_id"].to_pylist())


def composed_summaries(folder: Folder) -> Iterator[ComposedSummary]:
    """Yield the summaries of all composed pairs of a round."""
    for shard in folder.shards():
        positions = (Position(shard, row) for row in count())
        for table in scan_shard(folder, shard, schemas.COMPOSED, ["sample_id", "provenance.edit"]):
            for position, row in zip(positions, table.to_pylist(), strict=False):
                yield ComposedSummary(row["sample_id"], position, row["provenance"]["edit"])


def edit_counts(folder: Folder) -> Counter[str]:
    """The number of sentences of all composed pairs of a round by action (``Edit.action``)."""
    counts: Counter[str] = Counter()
    for table in scan(folder, schemas.COMPOSED, ["target.edits"]):
        actions = pc.struct_field(pc.list_flatten(pc.struct_field(table["target"], "edits")), "action")
        counts.update({item["values"]: item["counts"] for item in pc.value_counts(actions).to_pylist()})
    return counts


def rows_at(folder: Folder, positions: Sequence[Position], schema: pa.Schema) -> list[Any]:
    """Whole rows of ``schema``, in the order of ``positions``; one shard is read at a time."""
    rows: dict[Position, Any] = {}
    for shard in sorted({position.shard for position in positions}):
        table = folder.read_table(shard_name(shard), schema)
        for position in positions:
            if position.shard == shard:
                rows[position] = table.slice(position.row, 1).to_pylist()[0]
    return [rows[position] for position in positions]


def captions(folder: Folder, ids: Collection[str] | None = None) -> dict[str, Caption]:
    """Scored captions of one model and mode, by ``sample_id``; by default all."""
    by_id: dict[str, Caption] = {}
    columns = [name for name in schemas.SCORED_CAPTIONS.names if name != "image"]
    for shard in folder.shards():
        parts = scan_shard(folder, shard, schemas.SCORED_CAPTIONS, columns)
        for row, caption in enumerate(caption for table in parts for caption in table.to_pylist()):
            if ids is None or caption["sample_id"] in ids:
                by_id[caption["sample_id"]] = Caption(caption, Position(shard, row))
    return by_id


def images_at(folder: Folder, positions: Sequence[Position]) -> list[ImageRef]:
    """The images of evaluation captions, in the order of ``positions``."""
    images: dict[Position, ImageRef] = {}
    for shard in sorted({position.shard for position in positions}):
        column = folder.read_table(shard_name(shard), schemas.SCORED_CAPTIONS)["image"]
        images |= {position: column[position.row].as_py() for position in positions if position.shard == shard}
    return [images[position] for position in positions]


def costs(run: Run, rounds: Sequence[int]) -> list[StageCost]:
    """The finished stages of ``rounds`` in the order they ran."""
    stages = []
    for number in rounds:
        for name in _stage_names(run.round(number)):
            manifest = run.manifest(number, name)
            if manifest:
                stages.append(StageCost(number, name, manifest))
    return stages


def failures(run: Run, rounds: Sequence[int]) -> list[Failure]:
    """Failed rows by stage and kind, the most frequent first; excluded rows are not failures."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for number in rounds:
        for stage, folder in _leaves(run.round(number) / "errors", ""):
            for row in (row for table in scan(folder, schemas.ERRORS) for row in table.to_pylist()):
                if row["kind"] == schemas.EVALUATION_IMAGE:
                    continue
                key = (stage, row["kind"])
                counts[key] += 1
                examples.setdefault(key, row["message"])
    return [Failure(stage, kind, rows, examples[stage, kind]) for (stage, kind), rows in counts.most_common()]


def _flags(scored: pa.Table) -> tuple[NDArray[np.bool_], ...]:
    """Whether each pair is inverted, its captions are identical, and one of them is truncated."""
    return tuple(column.to_numpy() for column in (scored["inverted"], *identical_and_truncated(scored)))


def _cosines(caption: pa.ChunkedArray) -> NDArray[np.float64]:
    scores = pc.struct_field(pc.list_flatten(pc.struct_field(caption, "sentences")), "score")
    return np.asarray(scores.drop_null().to_numpy(), dtype=np.float64)


def _stage_names(folder: Folder) -> list[str]:
    """Stages in the order they run; captions have one folder per model and mode."""
    present = set(folder.names())
    names: list[str] = []
    for part in PARTS.values():
        if part.name in present:
            inner = [f"{part.name}/{name}" for name in (folder / part.name).names()] if part.per_model else []
            names += inner if part.per_model else [part.name]
    return names


def _leaves(folder: Folder, name: str) -> Iterator[tuple[str, Folder]]:
    """Yield the folders of shards below ``folder`` with their stage, which may be nested: ``captions/m0-greedy``."""
    if folder.shards():
        yield name, folder
        return
    for child in folder.names():
        yield from _leaves(folder / child, f"{name}/{child}".lstrip("/"))
