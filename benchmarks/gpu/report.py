"""Results of a step, sent at once to the process that writes them."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Message = tuple[str, str, Any]
"""Kind, name and value."""
log = logging.getLogger(__name__)


class Report:
    """Sends the results of one step."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send

    def figure(self, name: str, value: float | str | dict[str, Any]) -> None:
        """Send a measurement, or a group of them; numbers are positive."""
        self._send(("figures", name, value))

    def check(self, name: str, value: float, limit: float) -> None:
        """Send a check, which passes if ``value`` is at most ``limit``."""
        passed = math.isfinite(value) and value <= limit
        self._send(("checks", name, {"passed": passed, "value": value, "limit": limit}))

    def predict(self, name: str, predicted: float, measured: float, unit: str) -> None:
        """Send a figure predicted by preflight with its measurement."""
        line = {"predicted": predicted, "measured": measured, "ratio": predicted / measured, "unit": unit}
        self._send(("predictions", name, line))

    def skip(self, part: str, reason: str) -> None:
        """Report a part that cannot run here."""
        self._send(("skipped", part, reason))

    def headline(self, text: str) -> None:
        """Add text to the step's line on the terminal."""
        self._send(("headlines", text, None))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run a part of a step: its failure does not stop the others, and it is skipped if a library is missing."""
        try:
            yield
        except ImportError as error:
            self.skip(name, f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - recorded, and the step has failed
            log.error("%s: %s", name, traceback.format_exc())
            self._send(("failures", name, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))
