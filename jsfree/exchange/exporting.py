"""A run's pairs in somebody else's layout, with a card that says what they are and how they came to be.

Pairs are read and written a few at a time. Each file appears whole or not at all, and the card last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from jsfree import schemas
from jsfree.config import PairFormat, RunConfig
from jsfree.errors import ConfigError, RowError, RunError
from jsfree.exchange.card import Tally, card, figures
from jsfree.exchange.formats import FORMATS, Format, Placement
from jsfree.exchange.placing import Placer
from jsfree.exchange.preferences import preference
from jsfree.run.folder import Folder
from jsfree.run.locations import require_outside_runs, require_outside_sources
from jsfree.run.run import Run
from jsfree.run.streaming import scan
from jsfree.schemas import SelectedPair
from jsfree.stages.pair_selection import assign_roles

Pairs = Literal["selected", "scored"]
ROWS_A_FILE = 2000
BYTES_A_FILE = 256 * 10**6


@dataclass(frozen=True)
class Export:
    """What was written, and where."""

    uri: str
    figures: dict[str, Any]


class Writer(Protocol):
    """Takes records one by one; ``files`` is a pattern of what it writes, below the folder."""

    files: str

    def add(self, record: dict[str, Any]) -> None:
        """Write a record, now or later."""

    def close(self) -> None:
        """Write what is left."""


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
        number: the round; the last one that has such pairs, when omitted.
        pairs: those that were selected for training, or all that were scored, each with the role that selection
            gives it (identical captions, and inverted ones under ``select.inverted: drop``, are left out).
        placement: how images go with them; the format's usual way when omitted.

    Raises:
        ConfigError: the format cannot place images so, an image cannot be referred to, or ``out`` belongs to a run or
            to a source of this one.
        RunError: the run has no such pairs, or ``out`` is not empty.
        StorageError: something cannot be read or written.
    """
    layout = FORMATS[name]
    placement = _allowed(name, layout, placement)
    number = _round(run, pairs, number)
    folder = Folder(out)
    require_outside_runs("--out", folder)
    require_outside_sources("--out", folder, run.config)
    if folder.names() or folder.is_file():
        raise RunError(f"{out} is not empty", "choose another --out, or remove what is there")
    tally = Tally()
    records = _records(run, number, pairs, layout, Placer(placement, folder, run.config.source), tally)
    first = next(records, None)  # before any file is begun: what the placement does not allow shows here
    if first is None:
        raise RunError(
            f"{run.folder.uri}: none of the {pairs} pairs of round {number} can be exported", f"{tally.first}"
        )
    with folder.create("provenance.jsonl") as provenance, _writer(folder, layout, placement) as writer:
        for record, told in chain([first], records):
            writer.add(record)
            provenance.write(f"{_json(told)}\n".encode())
        writer.close()
    files = writer.files
    if name == "llama-factory":
        folder.write_json("dataset_info.json", _dataset_info(files))
    found = {"format": name, "images": placement, **figures(run, number, pairs, tally)}
    features = layout.features if _is_table(layout, placement) else ()
    folder.write("README.md", card(run, found, files, features).encode())
    return Export(folder.uri, found)


def _allowed(name: str, layout: Format, placement: Placement | None) -> Placement:
    if placement is None:
        return layout.placements[0]
    if placement not in layout.placements:
        able = " and ".join(each for each, other in FORMATS.items() if placement in other.placements)
        raise ConfigError(
            f"--images {placement}: {name} takes {' or '.join(layout.placements)}", f"{able} can {placement} images"
        )
    return placement


def _is_table(layout: Format, placement: Placement) -> bool:
    return layout.text is None or placement == "embed"


def _round(run: Run, pairs: Pairs, number: int | None) -> int:
    """The round that is meant, which must have its pairs."""
    stage = {"selected": "select", "scored": "score"}[pairs]
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
    """The writer for a layout; a file of text is published when the block ends without an error."""
    if _is_table(layout, placement):
        yield TableFiles(folder, layout)
        return
    assert layout.text is not None
    with folder.create(layout.text) as file:
        yield TextFile(file, layout.text)


def _records(
    run: Run, number: int, pairs: Pairs, layout: Format, placer: Placer, tally: Tally
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The record of each pair, and its provenance; a pair whose image cannot be used is left out and counted."""
    source, captioner = _origin(run.config, number)
    for pair in _pairs(run, number, pairs):
        taken = preference(pair, source, captioner)
        try:
            record = layout.write(taken, placer.place(pair["image"]))
        except RowError as error:
            tally.leave_out(str(error))
        else:
            tally.add(pair)
            yield record, taken.told()


def _pairs(run: Run, number: int, pairs: Pairs) -> Iterator[SelectedPair]:
    select, folder = run.config.select, run.stage(number, pairs)
    if pairs == "selected":
        for table in scan(folder, schemas.SELECTED):
            yield from table.to_pylist()
        return
    for table in scan(folder, schemas.SCORED):
        for pair in table.to_pylist():
            if pair["low"]["text"] != pair["high"]["text"] and not (pair["inverted"] and select.inverted == "drop"):
                yield assign_roles(pair, select)


def _origin(config: RunConfig, number: int) -> tuple[str, str]:
    """The kind of source, and the captioner; of imported pairs nobody knows it."""
    if config.imported is not None:
        return f"imported {config.imported.format}", "unknown"
    seed = config.captioner.versioned_ref
    return config.source.kind, seed if number == 1 else f"m{number - 1} of {seed}"


class TableFiles:
    """Parquet files of bounded size, images inside."""

    files = "data/train-*.parquet"

    def __init__(self, folder: Folder, layout: Format) -> None:
        self._folder = folder / "data"
        self._schema = layout.table
        self._rows: list[dict[str, Any]] = []
        self._size = 0
        self._files = 0

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record until there are enough for a file."""
        self._rows.append(record)
        self._size += _embedded(record)
        if len(self._rows) >= ROWS_A_FILE or self._size >= BYTES_A_FILE:
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
    """One file of JSON lines, or of a JSON list; it holds texts and paths alone."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.files = name
        self._file = file
        lines = name.endswith(".jsonl")
        self._before, self._between, self._behind = ("", "\n", "\n") if lines else ("[\n", ",\n", "\n]\n")

    def add(self, record: dict[str, Any]) -> None:
        """Write a record."""
        self._file.write((self._before + _json(record)).encode())
        self._before = self._between

    def close(self) -> None:
        """End the file."""
        self._file.write(self._behind.encode())


def _embedded(record: dict[str, Any]) -> int:
    """Bytes of the image in a record."""
    image = record["images"][0] if "images" in record else record["image"]
    return len(image["bytes"])


def _dataset_info(file: str) -> dict[str, Any]:
    """How LLaMA-Factory is told of a set: with this folder as ``dataset_dir`` and ``dataset: jsfree``."""
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    return {"jsfree": {"file_name": file, "formatting": "sharegpt", "ranking": True, "columns": columns}}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
