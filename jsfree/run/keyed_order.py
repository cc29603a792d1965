"""The order in which a run draws things by their names: by a hash that its seed keys.

It depends neither on the order in which they are found, nor on what else there is to draw from.
"""

from __future__ import annotations

import hashlib

TICKET_BYTES = 16
"""Size of a ticket: 128 bits tell names apart as well as the names do."""


def ticket(seed: int, name: str) -> bytes:
    """The BLAKE2b hash of ``{seed}/{name}``; what has the lowest ones is drawn first, compared as bytes."""
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=TICKET_BYTES).digest()
