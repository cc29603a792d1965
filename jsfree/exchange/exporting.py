"""Exports the pairs of a run in the format of another project, with a data set card.

Pairs are read and written a few at a time. Each file appears complete or not at all, and the card last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import IO, Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from jsfree import schemas
from jsfree.config import PairFormat, RunConfig
from jsfree.errors import ConfigError, RowError, RunError
from jsfree.exchange import composition
from jsfree.exchange.card import Tally, card, figures, is_composed
from jsfree.exchange.formats import FORMATS, Format, Placement
from jsfree.exchange.placing import ImageStore
from jsfree.exchange.preferences import preference
from jsfree.run.folder import Folder
from jsfree.run.locations import require_outside_runs, require_outside_sources
from jsfree.run.run import Run
from jsfree.run.stages import PARTS
from jsfree.run.streaming import scan
from jsfree.schemas import SelectedPair
from jsfree.stages.agreement import disagree
from jsfree.stages.pair_selection import assign_roles, identical_and_truncated, score_differences

Pairs = Literal["selected", "scored"]
ROWS_PER_FILE = 2000
BYTES_PER_FILE = 256 * 10**6


@dataclass(frozen=True)
class Export:
    """Where the data set was written, and its statistics."""

    uri: str
    figures: dict[str, Any]


class Writer(Protocol):
    """Writes records one by one; ``files`` is a pattern of its files, relative to the folder."""

    files: str

    def add(self, record: dict[str, Any]) -> None:
        """Write a record, possibly with a delay."""

    def close(self) -> None:
        """Write the remaining records."""


def export(
    run: Run,
    name: PairFormat,
    out: str,
    number: int | None = None,
    pairs: Pairs = "selected",
    placement: Placement | None = None,
) -> Export:
    """Write the pairs of a round in the format ``name`` to the folder or URI ``out``.

    Args:
        number: the round; by default the last one that has such pairs.
        pairs: those selected for training, or all scored ones with the roles that selection would give them (without
            identical captions, and without inverted pairs under ``select.inverted: drop``).
        placement: how images are stored; by default the first one that the format supports.

    Raises:
        ConfigError: the format does not support the placement, an image cannot be referred to, or ``out`` belongs to a
            run or to a source of this one.
        RunError: the run has no such pairs, or ``out`` is not empty.
        StorageError: a file cannot be read or written.
    """
    layout = _layout(name, is_composed(run, pairs))
    placement = _supported(name, layout, placement)
    number = _round(run, pairs, number)
    folder = Folder(out)
    require_outside_runs("--out", folder)
    require_outside_sources("--out", folder, run.config)
    if folder.names() or folder.is_file():
        raise RunError(f"{out} is not empty", "choose another --out, or empty it")
    tally = Tally()
    records = _records(run, number, pairs, layout, ImageStore(placement, folder, run.config.source), tally)
    first = next(records, None)  # before any file is created, so that an unsupported placement leaves none
    if first is None:
        raise RunError(
            f"{run.folder.uri}: none of the {pairs} pairs of round {number} can be exported ({tally.first})",
            "make the images readable",
        )
    with folder.create("provenance.jsonl") as provenance, _writer(folder, layout, placement) as writer:
        for record, row in chain([first], records):
            writer.add(record)
            provenance.write(f"{_json(row)}\n".encode())
        writer.close()
    files = writer.files
    if name == "llama-factory":
        folder.write_json("dataset_info.json", _dataset_info(files))
    statistics = {"format": name, "images": placement, **figures(run, number, pairs, tally)}
    features = layout.features if _is_table(layout, placement) else ()
    statistics["composed"] = _places_of_composition(layout) if is_composed(run, pairs) else []
    folder.write("README.md", card(run, statistics, files, features).encode())
    return Export(folder.uri, statistics)


def _layout(name: PairFormat, composed: bool) -> Format:
    """The format ``name``; with the columns of composed pairs if it may have them."""
    layout = FORMATS[name]
    if not composed or not layout.extensible or layout.table is None:
        return layout
    table = pa.schema([*layout.table, *composition.TABLE])
    return replace(layout, table=table, features=(*layout.features, *composition.features()))


def _places_of_composition(layout: Format) -> list[str]:
    """Where a set has composed captions: in its records if the format allows, and in ``provenance.jsonl``."""
    return [*(["records"] if layout.extensible else []), "provenance.jsonl"]


def _supported(name: str, layout: Format, placement: Placement | None) -> Placement:
    if placement is None:
        return layout.placements[0]
    if placement not in layout.placements:
        others = " or ".join(each for each, other in FORMATS.items() if placement in other.placements)
        raise ConfigError(
            f"--images {placement}: {name} supports {' or '.join(layout.placements)}",
            f"choose one of these, or the format {others}",
        )
    return placement


def _is_table(layout: Format, placement: Placement) -> bool:
    return layout.text is None or placement == "embed"


def _round(run: Run, pairs: Pairs, number: int | None) -> int:
    """The round to export; checks that it has its pairs."""
    stage = PARTS[pairs].stage
    if number is None:
        rounds = range(run.config.rounds, 0, -1)
        number = next((each for each in rounds if run.manifest(each, pairs)), None)
        if number is None:
            raise RunError(f"{run.folder.uri} has no {pairs} pairs yet", f"first do `jsfree {stage}`")
    elif run.manifest(number, pairs) is None:
        raise RunError(f"{run.folder.uri} has no {pairs} pairs in round {number}", f"first do `jsfree {stage}`")
    return number


@contextmanager
def _writer(folder: Folder, layout: Format, placement: Placement) -> Iterator[Writer]:
    """The writer for a format; a text file is published when the block ends without an error."""
    if _is_table(layout, placement):
        yield TableFiles(folder, layout)
        return
    assert layout.text is not None
    with folder.create(layout.text) as file:
        yield TextFile(file, layout.text)


def _records(
    run: Run, number: int, pairs: Pairs, layout: Format, image_store: ImageStore, tally: Tally
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The record and provenance of each pair; pairs with unusable images are left out and counted."""
    source, captioner = _origin(run.config, number)
    for pair in _pairs(run, number, pairs):
        converted = preference(pair, source, captioner)
        try:
            record = layout.write(converted, image_store.place(pair["image"]))
        except RowError as error:
            tally.leave_out(error.problem)
        else:
            tally.add(pair)
            if layout.extensible:
                record |= converted.composition
            yield record, converted.provenance_row()


def _pairs(run: Run, number: int, pairs: Pairs) -> Iterator[SelectedPair]:
    select, seed, folder = run.config.select, run.config.seed, run.stage(number, pairs)
    scorers = len(run.config.clip.scorers)
    if pairs == "selected":
        for table in scan(folder, schemas.selected_schema(select.strategy)):
            yield from table.to_pylist()
        return
    for table in scan(folder, schemas.scored_schema(0, scorers)):
        unusable = identical_and_truncated(table).identical.to_numpy()
        if select.inverted == "drop":
            unusable = unusable | table["inverted"].to_numpy()
        if select.inverted != "keep":
            unusable = unusable | disagree(score_differences(table))
        usable = table.select(schemas.SCORED.names).filter(pa.array(~unusable))
        yield from (assign_roles(pair, select, seed) for pair in usable.to_pylist())


def _origin(config: RunConfig, number: int) -> tuple[str, str]:
    """The kind of source, and the captioner, which is unknown for imported pairs."""
    if config.imported is not None:
        return f"imported {config.imported.format}", "unknown"
    seed = config.captioner.versioned_ref
    return config.source.kind, seed if number == 1 else f"m{number - 1} of {seed}"


class TableFiles:
    """Writes Parquet files of bounded size with embedded images."""

    files = "data/train-*.parquet"

    def __init__(self, folder: Folder, layout: Format) -> None:
        self._folder = folder / "data"
        self._schema = layout.table
        self._rows: list[dict[str, Any]] = []
        self._size = 0
        self._files = 0

    def add(self, record: dict[str, Any]) -> None:
        """Buffer a record until there are enough for a file."""
        self._rows.append(record)
        self._size += _embedded(record)
        if len(self._rows) >= ROWS_PER_FILE or self._size >= BYTES_PER_FILE:
            self._flush()

    def close(self) -> None:
        """Write the last file."""
        if self._rows:
            self._flush()

    def _flush(self) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self._rows, schema=self._schema), sink, row_group_size=100)
        self._folder.write(f"train-{self._files:05d}.parquet", sink.getvalue().to_pybytes())
        self._rows, self._size, self._files = [], 0, self._files + 1


class TextFile:
    """Writes one file of JSON lines, or a JSON list, of texts and paths."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.files = name
        self._file = file
        lines = name.endswith(".jsonl")
        self._prefix, self._separator, self._suffix = ("", "\n", "\n") if lines else ("[\n", ",\n", "\n]\n")

    def add(self, record: dict[str, Any]) -> None:
        """Write a record."""
        self._file.write((self._prefix + _json(record)).encode())
        self._prefix = self._separator

    def close(self) -> None:
        """Write the end of the file."""
        self._file.write(self._suffix.encode())


def _embedded(record: dict[str, Any]) -> int:
    """Bytes of the embedded image of a record."""
    image = record["images"][0] if "images" in record else record["image"]
    return len(image["bytes"])


def _dataset_info(file: str) -> dict[str, Any]:
    """LLaMA-Factory's description of the data set, used with this ``dataset_dir`` and ``dataset: jsfree``."""
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    return {"jsfree": {"file_name": file, "formatting": "sharegpt", "ranking": True, "columns": columns}}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
