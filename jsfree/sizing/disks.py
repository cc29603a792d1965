"""Disk space that a run requires, by the disks it writes to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from jsfree.run.filesystems import free_bytes, nearest_existing


@dataclass(frozen=True)
class DiskRequirement:
    """Bytes that will be written below a path, which need not exist yet, and their purpose."""

    path: str
    bytes: int
    purpose: str


@dataclass(frozen=True)
class Disk:
    """A filesystem with its free bytes, and all requirements on it."""

    free: int
    requirements: list[DiskRequirement]

    @property
    def required(self) -> int:
        """Bytes that all requirements take together."""
        return sum(requirement.bytes for requirement in self.requirements)

    @property
    def is_sufficient(self) -> bool:
        """Whether the free space holds all requirements."""
        return self.required <= self.free


def by_disk(requirements: Iterable[DiskRequirement]) -> list[Disk]:
    """Group requirements by filesystem."""
    groups: dict[int, list[DiskRequirement]] = {}
    for requirement in requirements:
        groups.setdefault(os.stat(nearest_existing(requirement.path)).st_dev, []).append(requirement)
    return [Disk(free_bytes(group[0].path), group) for group in groups.values()]
