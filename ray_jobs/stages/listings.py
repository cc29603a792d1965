"""The listing that a stage's shards are cut from, fixed before the first shard is written.

Shards are numbered, so a stage that is resumed takes shard 3 for the rows that it would write as shard 3 now. That
holds only while the listing is the same: ``fix_listing`` compares, and removes the shards of another one.
"""

from __future__ import annotations

from jsfree.run.folder import Folder, shard_name
from ray_jobs.rounds import Round

LISTING = "_listing.json"


def fix_listing(current: Round, stage: str, listing: str) -> None:
    """Record what the shards of a stage are cut from; shards of another listing, or of none, are removed.

    Safe to interrupt: the record is written last, so that a removal that was cut short starts again.

    Args:
        listing: a hash of everything listed, in its order.

    Raises:
        StorageError: the stage's folder cannot be read or written.
    """
    if fixed_listing(current, stage) == listing:
        return
    folder = current.stage(stage)
    folder.remove("_manifest.json")  # first: shards without a manifest are never taken for a finished stage
    for each in (folder, current.run.round(current.number) / "errors" / stage):
        remove_shards(each, each.shards())
    folder.write_json(LISTING, {"listing": listing})


def fixed_listing(current: Round, stage: str) -> str:
    """The listing that ``fix_listing`` recorded for a stage; empty where it has recorded none.

    Raises:
        StorageError: the stage's folder cannot be read.
    """
    folder = current.stage(stage)
    return str(folder.read_json(LISTING)["listing"]) if folder.exists(LISTING) else ""


def remove_shards(folder: Folder, numbers: list[int]) -> None:
    """Remove shards, so that they are made again."""
    for number in numbers:
        folder.remove(shard_name(number))
