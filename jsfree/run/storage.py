"""The folder of a run, on any filesystem that fsspec reaches.

    <run>/config.yaml  run.json  report/index.html
    <run>/round-k/samples/ pairs/ scored/ selected/ reference/ features/ train/ model/ captions/ metrics.json
    <run>/round-k/errors/<stage>/    rows that failed
    <run>/round-k/<stage>/_inputs.json, _manifest.json

Tables are cut into shards, ``shard-00000.parquet`` and on (more digits where there are more): a shard's name depends
only on its number, it appears whole or not at all, and a finished one is never written again. ``_inputs.json`` is the
first file of a stage and the last to be removed, the manifest is the last to be written and the first to be removed;
both carry the fingerprint of all that the stage depends on. A stage with files but without ``_inputs.json`` is
refused: nothing says what its files were made from.

A run is the folder that holds it. The ``run`` in its ``config.yaml`` is where it was started, and is not read.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from jsfree import config as configuration
from jsfree.config import RunConfig
from jsfree.config.strict_yaml import read_mapping
from jsfree.errors import JsfreeError, RunError, StorageError
from jsfree.run.filesystems import filesystem_of, reason

CONFIG, ABOUT = "config.yaml", "run.json"
INPUTS, MANIFEST = "_inputs.json", "_manifest.json"
FACTS = b"jsfree"
READERS = 16
"""Files of a store that are asked for at once."""
PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}$")
SHARD = re.compile(r"shard-([0-9]{5,})\.parquet")
ROUND = re.compile(r"round-([1-9][0-9]*)")


@dataclass(frozen=True)
class Manifest:
    """What a finished stage read, wrote and cost.

    ``seconds`` is wall time; ``device_seconds`` sums the time that replicas spent on rows (a GPU's, or a
    CPU's where there is none); ``tokens`` counts generated, scored or trained tokens.
    """

    fingerprint: str
    rows_in: int
    rows_out: int
    rows_failed: int
    seconds: float
    device_seconds: float
    tokens: int
    facts: dict[str, Any] = field(default_factory=dict)


class Folder:
    """A folder of a filesystem; reading and writing raise StorageError with the path and the reason."""

    def __init__(self, uri: str) -> None:
        if not uri:
            raise StorageError("the path of a folder is empty", "name a folder or URI")
        stripped = uri.rstrip("/")
        uri = uri if stripped in ("", uri.split("://")[0] + ":") else stripped  # a root keeps its slashes
        try:
            self.filesystem, self.path = filesystem_of(uri)
        except (ImportError, ValueError) as error:
            raise StorageError(f"{uri}: {error}") from error
        self.uri = self.path if self.is_local else uri

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri}/{name}")

    @property
    def is_local(self) -> bool:
        """Whether other programs can open ``path`` as it is."""
        return isinstance(self.filesystem, LocalFileSystem)

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or the file ``name`` in it, exists now."""
        with _explained(self.uri, "read"):
            self._forget_listings()
            return bool(self.filesystem.exists(self._at(name)))

    def is_file(self) -> bool:
        """Whether there is a file where the folder would be."""
        with _explained(self.uri, "read"):
            self._forget_listings()
            return bool(self.filesystem.isfile(self.path))

    def names(self) -> list[str]:
        """Names of the folder's entries, sorted; empty when there is no folder."""
        return sorted(self._entries())

    def folders(self) -> list[str]:
        """Names of the folders in the folder, sorted."""
        return sorted(name for name, entry in self._entries().items() if entry["type"] == "directory")

    def _entries(self) -> dict[str, dict[str, Any]]:
        with _explained(self.uri, "read"):
            self._forget_listings()
            if not self.filesystem.isdir(self.path):
                return {}
            found = {entry["name"].rstrip("/"): entry for entry in self.filesystem.ls(self.path, detail=True)}
            found.pop(self.path.rstrip("/"), None)  # a store's own object for the folder
            return {path.rsplit("/", 1)[-1]: entry for path, entry in found.items()}

    def _forget_listings(self) -> None:
        """Have the filesystem ask its store anew: other processes write to the same folders."""
        self.filesystem.invalidate_cache()

    def sizes(self) -> dict[str, int]:
        """Bytes of all files in and below the folder, by their paths in it, sorted; empty when there is no folder."""
        with _explained(self.uri, "read"):
            self._forget_listings()
            if not self.filesystem.isdir(self.path):
                return {}
            found = self.filesystem.find(self.path, detail=True)
            start = len(self.path.rstrip("/")) + 1
            return {path[start:]: int(entry["size"]) for path, entry in sorted(found.items())}

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Open a file for reading; an error of the store while it is open becomes a StorageError."""
        with _explained(f"{self.uri}/{name}", "read"), self.filesystem.open(self._at(name)) as file:
            yield file

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with _explained(f"{self.uri}/{name}", "read"):
            return bytes(self.filesystem.cat_file(self._at(name)))

    def write(self, name: str, content: bytes) -> None:
        """Publish a file atomically: it appears whole or not at all."""
        if self.is_local:
            with self.create(name) as file:
                file.write(content)
            return
        with _explained(f"{self.uri}/{name}", "written"):  # a store publishes an object when its upload is complete
            self.filesystem.pipe_file(self._at(name), content)

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Write a file part by part; it is published when the block ends, and not at all if an error ends it."""
        where = f"{self.uri}/{name}"
        if not self.is_local:
            with tempfile.NamedTemporaryFile() as spooled:
                with _explained(spooled.name, "written", OSError):
                    yield cast(IO[bytes], spooled)
                    spooled.flush()
                with _explained(where, "written"):
                    self.filesystem.put_file(spooled.name, self._at(name))
            return
        target = self._at(name)
        partial = f"{os.path.dirname(target)}/.{os.path.basename(target)}.{uuid.uuid4().hex}"  # as PARTIAL says
        with _explained(where, "written", OSError):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            try:
                with open(partial, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, target)
            except BaseException:
                with suppress(OSError):
                    os.remove(partial)
                raise

    def read_json(self, name: str) -> Any:
        """The content of a JSON file."""
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise StorageError(
                f"{self.uri}/{name} is no valid JSON ({error})", "delete it to have it made anew"
            ) from error

    def write_json(self, name: str, value: Any) -> None:
        """Publish a JSON file."""
        self.write(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read_table(self, name: str, schema: pa.Schema) -> pa.Table:
        """One Parquet file as a table of ``schema``."""
        content = self.read(name)
        try:
            return pq.read_table(pa.BufferReader(content)).cast(schema)
        except (pa.ArrowException, ValueError) as error:
            raise StorageError(f"{self.uri}/{name} is no table of this stage ({error})", "restart the stage") from error

    def write_table(
        self, name: str, table: pa.Table, facts: dict[str, Any] | None = None, group_rows: int | None = None
    ) -> None:
        """Publish a table as Parquet; ``facts`` travel in the file's metadata, ``group_rows`` is the row group size."""
        sink = pa.BufferOutputStream()
        described = table.replace_schema_metadata({FACTS: json.dumps(facts or {})})
        pq.write_table(described, sink, compression="zstd", row_group_size=group_rows)
        self.write(name, sink.getvalue().to_pybytes())

    def table_facts(self, name: str) -> dict[str, Any]:
        """What ``write_table`` was told about a table."""
        with self.open(name) as file:
            facts: dict[str, Any] = json.loads((pq.read_schema(file).metadata or {}).get(FACTS, b"{}"))
            return facts

    def rows(self) -> int:
        """Rows of all finished shards, from their footers."""
        with ThreadPoolExecutor(READERS) as readers:
            return sum(readers.map(self._rows_of, self.shards()))

    def _rows_of(self, number: int) -> int:
        with self.open(shard_name(number)) as file:
            return int(pq.read_metadata(file).num_rows)

    def shards(self) -> list[int]:
        """Numbers of the finished shards, in order."""
        return sorted(int(match[1]) for match in map(SHARD.fullmatch, self.names()) if match)

    def read_shards(self, schema: pa.Schema) -> pa.Table:
        """All finished shards as one table."""
        tables = [self.read_table(shard_name(number), schema) for number in self.shards()]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def upload(self, local: str) -> None:
        """Copy the files of a local folder into this one."""
        with _explained(self.uri, "written"):
            files = sorted(path for path in Path(local).rglob("*") if path.is_file())
            targets = [self._at(path.relative_to(local).as_posix()) for path in files]
            for folder in {self.path, *(os.path.dirname(target) for target in targets)}:
                self.filesystem.makedirs(folder, exist_ok=True)
            # Lists: a single path is taken for a pattern where it holds brackets.
            self.filesystem.put([str(path) for path in files], targets)

    def copy_here(self, source: Folder, name: str) -> None:
        """Copy a file of another folder of the same filesystem to the same name in this one."""
        with _explained(f"{self.uri}/{name}", "written"):
            self.filesystem.cp_file(source._at(name), self._at(name))

    def download(self, local: str) -> None:
        """Copy all that is in this folder into a local one."""
        with _explained(self.uri, "read"):
            names = list(self.sizes())
            for folder in {os.path.dirname(f"{local}/{name}") for name in names}:
                os.makedirs(folder, exist_ok=True)
            self.filesystem.get([self._at(name) for name in names], [f"{local}/{name}" for name in names])

    def remove(self, name: str = "") -> None:
        """Delete the folder and all in it, or the entry ``name`` of it, if it is there."""
        with _explained(self.uri, "removed"):
            self._forget_listings()
            path = self._at(name)
            if not self.filesystem.exists(path):
                return
            if self.is_local or not set(path) & set("*?["):
                self.filesystem.rm(path, recursive=True)
                return
            # Other file systems take such a path for a pattern, which would remove its neighbours.
            for file in self.filesystem.find(path):
                self.filesystem.rm_file(file)

    def sweep(self) -> None:
        """Remove what writers left half written when they were killed; for a folder that nobody writes to."""
        for name in self.names() if self.is_local else []:
            if PARTIAL.match(name):
                self.remove(name)

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path


class Run:
    """A run's folder with its configuration."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.folder = Folder(config.run)

    @classmethod
    def open(cls, config: RunConfig) -> Run:
        """Create the run's folder, or take up the one that is there.

        Raises:
            StorageError: the folder cannot be created or written.
        """
        run = cls(config)
        if not run.folder.exists(CONFIG):
            run.folder.write(CONFIG, config.to_yaml().encode())
        return run

    @classmethod
    def existing(cls, uri: str) -> Run:
        """Open the run in the folder ``uri``, with the configuration it was made with, wherever it was made.

        Raises:
            RunError: there is no run at ``uri``.
        """
        folder = Folder(uri)
        return cls(stored_config(folder).model_copy(update={"run": folder.uri}))

    def rounds(self) -> list[int]:
        """Numbers of the rounds that have a folder, in order."""
        return sorted(int(match[1]) for match in map(ROUND.fullmatch, self.folder.names()) if match)

    def round(self, number: int) -> Folder:
        """The folder of a round, counted from 1."""
        return self.folder / f"round-{number}"

    def stage(self, number: int, name: str) -> Folder:
        """The folder of a stage of a round."""
        return self.round(number) / name

    def manifest(self, number: int, stage: str) -> Manifest | None:
        """The manifest of a stage, if it has finished."""
        folder = self.stage(number, stage)
        return Manifest(**folder.read_json(MANIFEST)) if folder.exists(MANIFEST) else None

    def begin(self, number: int, stage: str, fingerprint: str) -> Manifest | None:
        """Start, resume or skip a stage: its manifest when it has finished with the same inputs, else None.

        Raises:
            RunError: the stage was made, in part or whole, from other inputs, or from inputs that are not recorded.
        """
        folder = self.stage(number, stage)
        inputs = folder.read_json(INPUTS)["fingerprint"] if folder.exists(INPUTS) else None
        done = self.manifest(number, stage)
        if inputs is None and (done is not None or any(not name.startswith(".") for name in folder.names())):
            raise RunError(
                f"{folder.uri} holds files, but no {INPUTS} that says what they were made from (a removal was"
                f" interrupted, or a copy is not complete)",
                f"redo the stage with --restart {stage.split('/')[0]}",
            )
        if inputs not in (None, fingerprint) or (done is not None and done.fingerprint != fingerprint):
            raise RunError(self._mismatch(number, stage))
        if inputs is None:
            folder.write_json(INPUTS, {"fingerprint": fingerprint})
        return done

    def finish(self, number: int, stage: str, manifest: Manifest) -> Manifest:
        """Publish the manifest of a stage that is done, and the configuration that made it."""
        self.stage(number, stage).write_json(MANIFEST, asdict(manifest))
        self.folder.write(CONFIG, self.config.to_yaml().encode())
        return manifest

    def _mismatch(self, number: int, stage: str) -> str:
        changed = configuration.differences(stored_config(self.folder), self.config)
        what = (
            "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "") if changed else "an earlier stage was redone"
        )
        return (
            f"{self.folder.uri}: stage {stage!r} of round {number} was made with other settings ({what});"
            f" choose another folder with --run, or redo it with --restart {stage.split('/')[0]}"
        )


def stored_config(folder: Folder) -> RunConfig:
    """The configuration in a run's folder.

    Raises:
        RunError: there is no run in ``folder``.
    """
    if not folder.exists(CONFIG):
        start = f"jsfree run --run {shlex.quote(folder.uri)}"
        raise RunError(f"{folder.uri} holds no run (no {CONFIG})", f"start one with `{start}`")
    return configuration.build(stored_settings(folder), f"{folder.uri}/{CONFIG}")


def stored_settings(folder: Folder) -> dict[str, Any]:
    """The settings in a run's folder, as its ``config.yaml`` has them."""
    return read_mapping(folder.read(CONFIG), f"{folder.uri}/{CONFIG}")


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.parquet"


@contextmanager
def _explained(path: str, verb: str, kind: type[Exception] = Exception) -> Iterator[None]:
    """Turn an operating system's or a store's error into one line that names the path."""
    try:
        yield
    except JsfreeError:
        raise
    except kind as error:  # every store's client has errors of its own
        raise StorageError(f"{path} cannot be {verb}: {reason(error)}") from error
