"""Pseudo-random order of named items, keyed with a seed.

The order of two items depends on the seed and their names only, not on the order of the input or on other items.
"""

from __future__ import annotations

import hashlib

KEY_BYTES = 16
"""Size of a sort key. 128 bits make collisions of different names negligible."""


def order_key(seed: int, name: str) -> bytes:
    """Sort key of an item: the BLAKE2b hash of ``{seed}/{name}``. Keys are compared as bytes, in ascending order."""
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=KEY_BYTES).digest()
