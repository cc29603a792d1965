"""When the decoding of a request began and ended. Imports nothing, so that the HTTP server can use it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds from the submission of a request until its decoding began, its first token, and its last."""

    started: float
    first_token: float
    finished: float
