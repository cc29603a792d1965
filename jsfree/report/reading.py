"""What the page needs of a run's tables and files, read shard by shard.

A run may hold gigabytes of images: tables are reduced to a few numbers a row while they are read, and whole
rows are read again only for the scenes that are shown. Whatever a run does not hold (yet) is simply empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jsfree import schemas
from jsfree.schemas import ImageRef, ScoredCaptionRow, ScoredPair
from jsfree.storage import Folder, Manifest, Run, shard_name

STAGES = (
    *("samples", "evaluation", "evaluation_hashes", "pairs", "scored", "selected"),
    *("reference", "train", "captions", "captions_scored"),
)


@dataclass(frozen=True)
class Place:
    """Where a row is: shard number and row within the shard."""

    shard: int
    row: int


@dataclass(frozen=True)
class PairNote:
    """What is kept in memory of every scored pair. ``cut``: a caption ended at the length limit."""

    sample_id: str
    place: Place
    gap: float
    inverted: bool
    identical: bool
    cut: bool


@dataclass(frozen=True)
class Scored:
    """All scored pairs of a round, and the CLIP cosines of all their sentences."""

    notes: list[PairNote]
    cosines: NDArray[np.float64]


@dataclass(frozen=True)
class Caption:
    """An evaluation caption without its image, which stays at ``place``."""

    row: ScoredCaptionRow
    place: Place


@dataclass(frozen=True)
class Failure:
    """Rows that failed in one stage for one kind of reason, with one of the messages."""

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
    """Numbers of the rounds that have something to show."""
    return [number for number in run.rounds() if run.manifest(number, "scored") or evaluated(run, number)]


def evaluated(run: Run, number: int) -> bool:
    """Whether round ``number`` has metrics of either kind."""
    return any(run.round(number).exists(name) for name in ("metrics.json", "label_free.json"))


def json_or_empty(folder: Folder, name: str) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is missing."""
    return dict(folder.read_json(name)) if folder.exists(name) else {}


def training_log(run: Run, number: int) -> list[dict[str, Any]]:
    """The optimizer steps of a round, oldest first; empty when none were logged."""
    folder = run.stage(number, "train")
    return list(folder.read_json("steps.json")) if folder.exists("steps.json") else []


def scored_pairs(folder: Folder) -> Scored:
    """Notes of all scored pairs of a round; one shard is in memory at a time."""
    notes: list[PairNote] = []
    cosines: list[NDArray[np.float64]] = []
    for shard, table in _tables(folder, schemas.SCORED):
        low, high = table["low"].combine_chunks(), table["high"].combine_chunks()
        columns = (
            table["sample_id"].to_pylist(),
            table["gap"].to_pylist(),
            table["inverted"].to_pylist(),
            pc.equal(low.field("text"), high.field("text")).to_pylist(),
            pc.or_(_is_cut(low), _is_cut(high)).to_pylist(),
        )
        rows = enumerate(zip(*columns, strict=True))
        notes += [PairNote(key, Place(shard, row), gap, *flags) for row, (key, gap, *flags) in rows]
        cosines += [_cosines(caption) for caption in (low, high)]
    return Scored(notes, np.concatenate(cosines) if cosines else np.empty(0))


def selected_ids(folder: Folder) -> dict[str, int]:
    """The split, by ``sample_id``, of every pair that training takes."""
    splits: dict[str, int] = {}
    for _, table in _tables(folder, schemas.SELECTED):
        splits.update(zip(table["sample_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    return splits


def pairs_at(folder: Folder, places: Sequence[Place]) -> list[ScoredPair]:
    """Whole scored pairs, in the order of ``places``."""
    found: dict[Place, ScoredPair] = {}
    for shard in sorted({place.shard for place in places}):
        table = folder.read_table(shard_name(shard), schemas.SCORED)
        for place in places:
            if place.shard == shard:
                found[place] = table.slice(place.row, 1).to_pylist()[0]
    return [found[place] for place in places]


def captions(folder: Folder) -> dict[str, Caption]:
    """Scored captions of one model and mode by ``sample_id``."""
    found: dict[str, Caption] = {}
    for shard, table in _tables(folder, schemas.SCORED_CAPTIONS):
        for row, caption in enumerate(table.drop_columns(["image"]).to_pylist()):
            found[caption["sample_id"]] = Caption(caption, Place(shard, row))
    return found


def images_at(folder: Folder, places: Sequence[Place]) -> list[ImageRef]:
    """The images of evaluation captions, in the order of ``places``."""
    found: dict[Place, ImageRef] = {}
    for shard in sorted({place.shard for place in places}):
        column = folder.read_table(shard_name(shard), schemas.SCORED_CAPTIONS)["image"]
        found |= {place: column[place.row].as_py() for place in places if place.shard == shard}
    return [found[place] for place in places]


def costs(run: Run, rounds: Sequence[int]) -> list[StageCost]:
    """The finished stages of ``rounds`` in the order they ran."""
    found = []
    for number in rounds:
        for name in _stage_names(run.round(number)):
            manifest = run.manifest(number, name)
            if manifest:
                found.append(StageCost(number, name, manifest))
    return found


def failures(run: Run, rounds: Sequence[int]) -> list[Failure]:
    """Failed rows by stage and kind, the most frequent first; excluded rows did not fail."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for number in rounds:
        for stage, folder in _leaves(run.round(number) / "errors", ""):
            for row in folder.read_shards(schemas.ERRORS).to_pylist():
                if row["kind"] == schemas.EVALUATION_IMAGE:
                    continue
                key = (stage, row["kind"])
                counts[key] += 1
                examples.setdefault(key, row["message"])
    return [Failure(stage, kind, rows, examples[stage, kind]) for (stage, kind), rows in counts.most_common()]


def _tables(folder: Folder, schema: pa.Schema) -> Iterator[tuple[int, pa.Table]]:
    for shard in folder.shards():
        yield shard, folder.read_table(shard_name(shard), schema)


def _is_cut(caption: pa.StructArray) -> pa.Array:
    return pc.equal(caption.field("finish"), "length")


def _cosines(caption: pa.StructArray) -> NDArray[np.float64]:
    scores = pc.list_flatten(caption.field("sentences")).field("score")
    return np.asarray(scores.drop_null().to_numpy(zero_copy_only=False), dtype=np.float64)


def _stage_names(folder: Folder) -> list[str]:
    """Stages in the order they run; captions have one folder a model and mode."""
    present = set(folder.names())
    nested = {"captions", "captions_scored"}
    names: list[str] = []
    for stage in STAGES:
        if stage in present:
            names += [f"{stage}/{name}" for name in (folder / stage).names()] if stage in nested else [stage]
    return names


def _leaves(folder: Folder, name: str) -> Iterator[tuple[str, Folder]]:
    """Folders of shards below ``folder`` (a stage may be nested: ``captions/m0-greedy``), with their stage."""
    if folder.shards():
        yield name, folder
        return
    for child in folder.names():
        yield from _leaves(folder / child, f"{name}/{child}".lstrip("/"))
