"""Votes of visitors on captions: a table of their own in ``<run>/votes``, outside the stages of the run.

The method has no human in the loop: no stage reads votes. They leave the run only with ``jsfree export --votes``. Each
vote is a file, so that several servers can add votes at once, on any filesystem.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from jsfree.run.folder import READERS, Folder
from jsfree.run.run import Run

VOTES = "votes"
MAX_VOTES = 20_000
"""Votes that a run stores."""
FILE = "votes.jsonl"


@dataclass(frozen=True, kw_only=True)
class Vote:
    """A blind vote on two captions of one image.

    ``winner`` and ``loser`` are models (m0, m1, ...), in either order if ``tie``. ``image`` is the SHA-256 of the image
    file. ``cast`` is the time in UTC, in ISO 8601.
    """

    winner: str
    loser: str
    tie: bool
    image: str
    ratio: float
    views: int
    temperature: float
    seed: int
    cast: str = ""


def add_vote(run: Run, vote: Vote) -> bool:
    """Store a vote with the current time; return False if the run has ``MAX_VOTES`` votes already.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder = run.folder / VOTES
    if len(folder.names()) >= MAX_VOTES:
        return False
    cast = datetime.now(UTC).isoformat(timespec="milliseconds")
    folder.write_json(f"{cast.replace(':', '')}-{uuid.uuid4().hex[:8]}.json", {**asdict(vote), "cast": cast})
    return True


class VoteReader:
    """Reads the votes of a run, each file once: a vote never changes."""

    def __init__(self, run: Run) -> None:
        self._folder = run.folder / VOTES
        self._known: dict[str, Vote] = {}

    def read(self) -> list[Vote]:
        """All votes, the oldest first.

        Raises:
            StorageError: a vote cannot be read.
        """
        names = [name for name in self._folder.names() if name.endswith(".json") and not name.startswith(".")]
        new = [name for name in names if name not in self._known]
        with ThreadPoolExecutor(READERS) as readers:
            found = readers.map(self._folder.read_json, new)
            self._known |= {name: Vote(**vote) for name, vote in zip(new, found, strict=True)}
        return [self._known[name] for name in names]


def read_votes(run: Run) -> list[Vote]:
    """All votes of a run, as ``VoteReader.read``."""
    return VoteReader(run).read()


def tally(votes: Iterable[Vote]) -> list[dict[str, Any]]:
    """Counts of votes by pair of models: ``{"models": [a, b], "wins": [of a, of b], "ties"}``, a before b in order."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for vote in votes:
        pair = _pair(vote)
        counts.setdefault(pair, Counter())["ties" if vote.tie else vote.winner] += 1
    return [
        {"models": list(pair), "wins": [count[model] for model in pair], "ties": count["ties"]}
        for pair, count in sorted(counts.items())
    ]


def _pair(vote: Vote) -> tuple[str, str]:
    first, second = sorted((vote.winner, vote.loser), key=lambda model: (len(model), model))
    return first, second


def export_votes(run: Run, target: Folder) -> int:
    """Write all votes as ``votes.jsonl`` into a folder; return their number.

    Raises:
        StorageError: a vote cannot be read, or the file cannot be written.
    """
    votes: Sequence[Vote] = read_votes(run)
    target.write(FILE, "".join(json.dumps(asdict(vote)) + "\n" for vote in votes).encode())
    return len(votes)
