"""Fixes the listing that the shards of a stage are cut from, before the first shard is written.

Shards are numbered, so a resumed stage takes the existing shard 3 for the one it would write as shard 3 now. This is
only correct while the listing is the same. ``fix_listing`` compares, and removes the shards of another listing.
"""

from __future__ import annotations

from jsfree.run.folder import Folder, shard_name
from jsfree.run.run import MANIFEST
from ray_jobs.rounds import Round

LISTING = "_listing.json"


def fix_listing(current: Round, stage: str, listing: str) -> None:
    """Record the listing of a stage, and remove shards that were made from another one or from an unknown one.

    An interrupted call can be repeated: the record is written after the removal.

    Args:
        listing: a hash of all listed items, in order.

    Raises:
        StorageError: the stage's folder cannot be read or written.
    """
    if fixed_listing(current, stage) == listing:
        return
    folder = current.stage(stage)
    folder.remove(MANIFEST)  # first, so that the shards that are left do not pass for a finished stage
    for each in (folder, current.errors(stage)):
        remove_shards(each, each.shards())
    folder.write_json(LISTING, {"listing": listing})


def fixed_listing(current: Round, stage: str) -> str:
    """The listing recorded by ``fix_listing``; empty if there is none.

    Raises:
        StorageError: the stage's folder cannot be read.
    """
    folder = current.stage(stage)
    return str(folder.read_json(LISTING)["listing"]) if folder.exists(LISTING) else ""


def remove_shards(folder: Folder, numbers: list[int]) -> None:
    """Remove shards, so that they are made again."""
    for number in numbers:
        folder.remove(shard_name(number))
