"""What a step finds, sent to the process that writes the result as soon as it is known."""

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
    """The findings of one step."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send

    def figure(self, name: str, value: float | str | dict[str, Any]) -> None:
        """A measurement, or a group of them; numbers are positive."""
        self._send(("figures", name, value))

    def check(self, name: str, value: float, limit: float) -> None:
        """A property that holds if ``value`` is at most ``limit``."""
        passed = math.isfinite(value) and value <= limit
        self._send(("checks", name, {"passed": passed, "value": value, "limit": limit}))

    def predict(self, name: str, predicted: float, measured: float, unit: str) -> None:
        """A figure that ``jsfree.checks`` predicts, beside its measurement."""
        line = {"predicted": predicted, "measured": measured, "ratio": predicted / measured, "unit": unit}
        self._send(("predictions", name, line))

    def skip(self, part: str, reason: str) -> None:
        """A part that cannot run here."""
        self._send(("skipped", part, reason))

    def headline(self, text: str) -> None:
        """A few words for the step's line on the terminal."""
        self._send(("headlines", text, None))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of a step whose failure leaves the others to run; one that lacks a library is skipped."""
        try:
            yield
        except ImportError as error:
            self.skip(name, f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - recorded, and the step has failed
            log.error("%s: %s", name, traceback.format_exc())
            self._send(("failures", name, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))
