"""Records of the shards that workers have begun, kept in the run's folder so that they survive a worker's death.

A worker writes a record before it begins a shard and removes it when the shard is published, so a record that is found
belongs to an attempt that was interrupted. If its worker died by itself, the rows are suspects: they run one by one,
alone in their worker, each recorded before it begins. A row that kills its worker ``DEATHS`` times in this way is
quarantined as an error row. An attempt that ended with its node or driver, or for an unknown reason, blames no row.
After ``UNEXPLAINED`` such attempts the rows run one by one too, and one that was running in ``LOSSES`` of them is
quarantined.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field

from jsfree.errors import StageError, StorageError
from jsfree.run.folder import Folder

DEATHS = 2
"""Deaths of the worker in which a row runs alone, after which the row is quarantined."""
LOSSES = 5
"""Unexplained interruptions while the same row runs alone, after which the row is quarantined."""
UNEXPLAINED = 3
"""Unexplained interruptions of a shard after which its rows run one by one."""
MAX_ATTEMPTS = 20
"""Interrupted attempts at a shard without a row that finished, after which the stage fails."""


@dataclass
class _Record:
    """The stored record of a shard."""

    begun: int = 0
    """Interrupted attempts since a row last finished."""
    by: str = ""
    """The process of the last attempt."""
    suspects: bool = False
    """Whether the rows run one by one."""
    row: str | None = None
    """The row that is running alone."""
    cleared: list[str] = field(default_factory=list)
    """Rows that finished alone."""
    deaths: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)


class Attempt:
    """An attempt at one shard."""

    def __init__(self, folder: Folder, shard: int, *, after: str | None) -> None:
        """Read the record of earlier attempts and draw conclusions from the last one.

        Args:
            folder: the records of the stage.
            shard: number of the shard.
            after: the process that had the shard before, if it is known to have died by itself.

        Raises:
            StageError: the shard was interrupted too often, and no row is to blame.
        """
        self._folder = folder
        self._name = f"shard-{shard:05d}.json"
        stored = _Record(**folder.read_json(self._name)) if folder.exists(self._name) else _Record()
        self._record = stored
        if stored.begun >= MAX_ATTEMPTS:
            self._record = _Record(suspects=True, cleared=stored.cleared)  # allows a new start on a repaired machine
            self._write()
            raise StageError(
                f"shard {shard} was attempted {stored.begun} times, and its worker died each time, whatever its rows",
                "see the logs of Ray's workers: a worker has too little memory, or the model fails on this machine",
            )
        if stored.begun:
            self._assign_blame(died=stored.by == after)

    def _assign_blame(self, *, died: bool) -> None:
        """Update the record after an attempt that was interrupted; ``died``: its worker died by itself."""
        record = self._record
        if record.row is not None:
            counts = record.deaths if died else record.losses
            counts[record.row] = counts.get(record.row, 0) + 1
        elif died and record.suspects:
            record.cleared = []  # rows that finished alone may kill their worker together
        record.suspects = record.suspects or died or record.begun >= UNEXPLAINED
        record.row = None
        self._write()

    @property
    def one_by_one(self) -> bool:
        """Whether rows must run alone."""
        return self._record.suspects

    def is_cleared(self, row: str) -> bool:
        """Whether a row has finished alone."""
        return row in self._record.cleared

    def is_quarantined(self, row: str) -> bool:
        """Whether a row has killed its worker too often."""
        return self._record.deaths.get(row, 0) >= DEATHS or self._record.losses.get(row, 0) >= LOSSES

    def begin(self, process: str) -> None:
        """Record that the attempt begins in a process."""
        self._record.begun += 1
        self._record.by = process
        self._write()

    @contextmanager
    def alone(self, row: str) -> Iterator[None]:
        """Record that a row runs alone, and at the end of the block that it has finished."""
        self._record.row = row
        self._write()
        yield
        self._record.row = None
        self._record.begun = 1
        self._record.cleared.append(row)
        self._write()

    def end(self) -> None:
        """Remove the record of a published shard."""
        with suppress(StorageError):  # a leftover record costs time only, and the end of the stage removes it
            self._folder.remove(self._name)

    def give_up(self) -> None:
        """Record that the attempt ended with an error, which blames no row; earlier conclusions are kept."""
        self._record.begun, self._record.by, self._record.row = 0, "", None
        with suppress(StorageError):  # the error that ended the attempt matters more
            if self._record == _Record():
                self._folder.remove(self._name)
            else:
                self._write()

    def _write(self) -> None:
        self._folder.write_json(self._name, asdict(self._record))
