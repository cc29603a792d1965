"""Which shards workers have begun, in the run's folder, where no worker's death can lose it.

A worker notes a shard before it begins and strikes the note out when the shard is published. A note that is found
is of an attempt that did not end. Where its worker died by itself, its rows are suspects: they are run one by one,
with no other shard under way in that worker, each noted before it begins. A row that ends its worker ``DEATHS`` times
so is quarantined, as an error row. An attempt that ended with its node or its driver, or nobody knows how, accuses no
row; after some of them rows are run one by one all the same, and one that ``LOSSES`` of them ended with is quarantined.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field

from jsfree.errors import StageError, StorageError
from jsfree.run.folder import Folder

DEATHS = 2
"""Deaths of a row's worker, with nothing else under way, after which the row is quarantined."""
LOSSES = 5
"""Attempts that ended, nobody knows how, while the same row ran alone, after which it is quarantined."""
UNEXPLAINED = 3
"""Attempts at a shard that did not end, after which its rows are run one by one whatever ended them."""
MOST = 20
"""Attempts at a shard that did not end in which no row ended well either, after which the stage gives up."""


@dataclass
class _Note:
    """What is noted of a shard."""

    begun: int = 0
    """Attempts that have not ended since a row ended well."""
    by: str = ""
    """The process that began the last one."""
    suspects: bool = False
    """Whether its rows run one by one."""
    row: str | None = None
    """The one that runs alone."""
    cleared: list[str] = field(default_factory=list)
    """Rows that ended well, alone."""
    deaths: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)


class Attempt:
    """An attempt at one shard."""

    def __init__(self, folder: Folder, shard: int, *, after: str | None) -> None:
        """Look at what is noted of the attempts before, and judge it.

        Args:
            folder: the stage's notes.
            shard: its number.
            after: the process that had the shard before, if it is known to have ended by itself.

        Raises:
            StageError: the shard has ended too many workers, and no row is found to blame.
        """
        self._folder = folder
        self._name = f"shard-{shard:05d}.json"
        self._note = note = _Note(**folder.read_json(self._name)) if folder.exists(self._name) else _Note()
        if note.begun >= MOST:
            self._note = _Note(suspects=True, cleared=note.cleared)  # whoever mends the machine may start again
            self._write()
            raise StageError(
                f"shard {shard} was begun {note.begun} times and no attempt ended, whichever rows ran",
                "its worker has too little memory, or its model fails on this machine: see the logs of Ray's workers",
            )
        if note.begun:
            self._judge(died=note.by == after)

    def _judge(self, *, died: bool) -> None:
        """Conclude from an attempt that did not end."""
        note = self._note
        if note.row is not None:
            accused = note.deaths if died else note.losses
            accused[note.row] = accused.get(note.row, 0) + 1
        elif died and note.suspects:
            note.cleared = []  # those that had ended well alone may have ended it together
        note.suspects = note.suspects or died or note.begun >= UNEXPLAINED
        note.row = None
        self._write()

    @property
    def one_by_one(self) -> bool:
        """Whether rows have to run alone."""
        return self._note.suspects

    def is_cleared(self, row: str) -> bool:
        """Whether a row has run alone to its end."""
        return row in self._note.cleared

    def is_quarantined(self, row: str) -> bool:
        """Whether a row has ended its worker too often."""
        return self._note.deaths.get(row, 0) >= DEATHS or self._note.losses.get(row, 0) >= LOSSES

    def begin(self, process: str) -> None:
        """Note that the attempt begins, in a process."""
        self._note.begun += 1
        self._note.by = process
        self._write()

    @contextmanager
    def alone(self, row: str) -> Iterator[None]:
        """Note that a row runs alone, and that it has ended well."""
        self._note.row = row
        self._write()
        yield
        self._note.row = None
        self._note.begun = 1
        self._note.cleared.append(row)
        self._write()

    def end(self) -> None:
        """Strike the note out: the shard is published."""
        with suppress(StorageError):  # a note too many costs time, and the stage removes them all
            self._folder.remove(self._name)

    def give_up(self) -> None:
        """Keep what is known of the rows, for an attempt that ended with an error: none of them is to blame."""
        self._note.begun, self._note.by, self._note.row = 0, "", None
        with suppress(StorageError):  # what the attempt ended with says more
            if self._note == _Note():
                self._folder.remove(self._name)
            else:
                self._write()

    def _write(self) -> None:
        self._folder.write_json(self._name, asdict(self._note))
