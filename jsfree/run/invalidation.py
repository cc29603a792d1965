"""Removes what stages wrote, in an order that an interruption at any point cannot turn into wrong results.

First the files that say that a stage is done, then its content, and its ``_inputs.json`` last. While any content is
left, ``Run.begin`` thus compares what it was made from, and refuses it for other settings.
"""

from __future__ import annotations

from collections.abc import Sequence

from jsfree.run.folder import Folder
from jsfree.run.run import INPUTS, MANIFEST

BESIDE = ("errors", "attempts")
"""Folders of a round with what failed in a stage and what is under way, by the stage's name."""


def discard(round_folder: Folder, written: Sequence[str]) -> None:
    """Remove from a round's folder what a stage wrote.

    Args:
        written: names of the stage's files (``.json``, which mark it as done) and folders.

    Raises:
        StorageError: something cannot be removed; the same call goes on where it stopped.
    """
    marks = [name for name in written if name.endswith(".json")]
    folders = [name for name in written if name not in marks]
    stages = [stage for name in folders for stage in _stages(round_folder, name)]
    for name in [*marks, *(f"{stage}/{MANIFEST}" for stage in stages)]:
        round_folder.remove(name)
    for stage in stages:
        for name in (round_folder / stage).names():
            if name != INPUTS:
                round_folder.remove(f"{stage}/{name}")
    for name in folders:
        if name not in stages:
            _remove_but(round_folder, name, stages)
    for name in [f"{kind}/{name}" for kind in BESIDE for name in folders]:  # after the shards that they belong to
        round_folder.remove(name)
    for name in [*stages, *folders]:
        round_folder.remove(name)


def _stages(round_folder: Folder, name: str) -> list[str]:
    """The stages in a folder: itself, or those one level below (``captions/m0-greedy``)."""
    folder = round_folder / name
    if {INPUTS, MANIFEST} & set(folder.names()):
        return [name]
    return [f"{name}/{inner}" for inner in folder.folders() if {INPUTS, MANIFEST} & set((folder / inner).names())]


def _remove_but(round_folder: Folder, name: str, kept: Sequence[str]) -> None:
    """Remove a folder, or of one that holds stages all the rest."""
    if not any(each.startswith(f"{name}/") for each in kept):
        round_folder.remove(name)
        return
    for inner in (round_folder / name).names():
        if f"{name}/{inner}" not in kept:
            round_folder.remove(f"{name}/{inner}")
