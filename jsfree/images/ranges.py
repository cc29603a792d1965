"""Addresses of images that are parts of larger files: ``/data/a.tar#offset=1536&length=20480``.

The part before ``#`` is a path or any fsspec URI. Such an address is a string like every other ``uri`` of an
image, so that tables and stages need to know nothing of it; only the one reader of images does.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_PART = re.compile(r"(.+)#offset=(\d{1,18})&length=(\d{1,18})", re.DOTALL)


class Part(NamedTuple):
    """``length`` bytes of ``file``, from ``offset`` on."""

    file: str
    offset: int
    length: int

    @property
    def uri(self) -> str:
        """The address of this part."""
        return f"{self.file}#offset={self.offset}&length={self.length}"


def part_at(uri: str) -> Part | None:
    """The part that ``uri`` names; None for the address of a whole file."""
    match = _PART.fullmatch(uri)
    return Part(match[1], int(match[2]), int(match[3])) if match else None
