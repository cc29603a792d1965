"""Which shards workers have begun, in the run's folder, where no worker's death can lose it.

A worker notes a shard before it begins and strikes the note out when the shard is published. A note that is found
is of an attempt that did not end. Where its worker died by itself, its rows are suspects: they are run one by one,
each noted before it begins. A row that ends its worker ``DEATHS`` times while it runs alone is quarantined, as an
error row. An attempt that ended with its node or its driver accuses no row, unless it happens again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from jsfree.storage import Folder

DEATHS = 2
"""Deaths of a row's worker, with no other row under way, after which the row is quarantined."""
UNEXPLAINED = 3
"""Attempts of a shard that ended with their node or driver, after which its rows are suspects all the same."""


@dataclass(frozen=True)
class Worker:
    """Who makes an attempt: Ray's ids of its job (one a driver) and node."""

    job: str
    node: str


@dataclass
class _Note:
    """What is noted of a shard."""

    workers: list[dict[str, str]] = field(default_factory=list)
    suspects: bool = False
    """Whether its rows run one by one."""
    row: str | None = None
    """The one that runs alone."""
    cleared: list[str] = field(default_factory=list)
    """Rows that ended well, alone."""
    deaths: dict[str, int] = field(default_factory=dict)


class Attempt:
    """An attempt at one shard."""

    def __init__(self, folder: Folder, name: str, note: _Note) -> None:
        self._folder = folder
        self._name = name
        self._note = note

    @property
    def one_by_one(self) -> bool:
        """Whether rows have to run alone."""
        return self._note.suspects

    def is_cleared(self, row: str) -> bool:
        """Whether a row has run alone to its end."""
        return row in self._note.cleared

    def is_quarantined(self, row: str) -> bool:
        """Whether a row has ended its worker too often."""
        return self._note.deaths.get(row, 0) >= DEATHS

    @contextmanager
    def alone(self, row: str) -> Iterator[None]:
        """Note that a row runs alone, and that it has ended well."""
        self._note.row = row
        self._write()
        yield
        self._note.row = None
        self._note.cleared.append(row)
        self._write()

    def end(self) -> None:
        """Strike the note out."""
        self._folder.remove(self._name)

    def _write(self) -> None:
        self._folder.write_json(self._name, asdict(self._note))


class Attempts:
    """The notes of one stage."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def begin(self, shard: int, worker: Worker, alive: Callable[[], Iterable[str]]) -> Attempt:
        """Note that a worker begins a shard.

        Args:
            shard: its number.
            worker: who begins it.
            alive: the nodes that are there; asked only if another attempt has not ended.
        """
        name = f"shard-{shard:05d}.json"
        note = _Note(**self._folder.read_json(name)) if self._folder.exists(name) else _Note()
        if note.workers:
            last = Worker(**note.workers[-1])
            by_itself = last.job == worker.job and last.node in set(alive())
            if by_itself or len(note.workers) >= UNEXPLAINED:
                note.suspects = True
                if note.row is not None:
                    note.deaths[note.row] = note.deaths.get(note.row, 0) + 1
        note.row = None
        note.workers.append(asdict(worker))
        self._folder.write_json(name, asdict(note))
        return Attempt(self._folder, name, note)
