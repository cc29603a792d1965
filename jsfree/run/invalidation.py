"""Removes the output of stages in an order that is safe to interrupt at any point.

The files that mark a stage as done are removed first, then its content, and its ``_inputs.json`` last. As long as any
content is left, ``Run.begin`` can compare its inputs and refuse it for other settings.
"""

from __future__ import annotations

from collections.abc import Sequence

from jsfree.run.folder import Folder
from jsfree.run.run import INPUTS, MANIFEST

RELATED = ("errors", "attempts")
"""Folders of a round that hold, in a subfolder per stage, rows that failed and records of unfinished shards."""


def discard(round_folder: Folder, written: Sequence[str]) -> None:
    """Remove the output of a stage from a round's folder.

    Args:
        written: names of the stage's files (``.json`` files, which mark it as done) and folders.

    Raises:
        StorageError: something cannot be removed; repeat the call to continue.
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
            _remove_except(round_folder, name, stages)
    for name in [f"{kind}/{name}" for kind in RELATED for name in folders]:  # after the shards they belong to
        round_folder.remove(name)
    for name in [*stages, *folders]:
        round_folder.remove(name)


def _stages(round_folder: Folder, name: str) -> list[str]:
    """The stages in a folder: the folder itself, or subfolders such as ``captions/m0-greedy``."""
    folder = round_folder / name
    if {INPUTS, MANIFEST} & set(folder.names()):
        return [name]
    return [f"{name}/{inner}" for inner in folder.folders() if {INPUTS, MANIFEST} & set((folder / inner).names())]


def _remove_except(round_folder: Folder, name: str, kept: Sequence[str]) -> None:
    """Remove a folder, except for the stages ``kept`` in it."""
    if not any(each.startswith(f"{name}/") for each in kept):
        round_folder.remove(name)
        return
    for inner in (round_folder / name).names():
        if f"{name}/{inner}" not in kept:
            round_folder.remove(f"{name}/{inner}")
