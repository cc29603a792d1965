"""Counts of what a judge was asked, as results and consoles show them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from jsfree.judge.replies import Reply
from jsfree.judge.settings import PriceTable


@dataclass
class Tally:
    """What the questions of a run took.

    Args:
        asked: questions, including those with errors.
        cached: questions whose reply was in the store.
        paid: replies received.
        attempts: requests sent.
        interrupted: questions that a killed process had sent without receiving a reply; they may be charged twice.
        without_usage: paid replies for which the server reported no usage.
        errors: error rows by kind.
        models: paid and cached replies by the name of the model that the server reported.
        seconds: wall-clock time.
    """

    asked: int = 0
    cached: int = 0
    paid: int = 0
    attempts: int = 0
    interrupted: int = 0
    without_usage: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def count_paid(self, reply: Reply) -> None:
        """Count a reply that was received."""
        self.paid += 1
        self.without_usage += reply.prompt_tokens is None
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0

    def as_json(self) -> dict[str, Any]:
        """The counts as results record them."""
        return {**vars(self), "errors": dict(self.errors), "models": dict(self.models)}


def cost_record(spent: float, uncertain: float, prices: PriceTable | None) -> dict[str, Any] | None:
    """The cost of a run as results record it; None without a price table."""
    if prices is None:
        return None
    return {
        "currency": prices.currency,
        "prices_as_of": prices.as_of.isoformat(),
        "spent": round(spent, 6),
        "possibly_charged_without_reply": round(uncertain, 6),
    }


def summary(tally: Tally, cost: dict[str, Any] | None) -> str:
    """One sentence about what was asked and paid."""
    text = f"{tally.asked} questions: {tally.cached} replies from the cache, {tally.paid} new"
    if not tally.paid and tally.cached == tally.asked:
        return f"{text}; nothing was paid"
    text += f" ({tally.prompt_tokens:,} + {tally.completion_tokens:,} tokens"
    text += f", {cost['spent']:.4f} {cost['currency']})" if cost else ")"
    if tally.errors:
        text += "; errors: " + ", ".join(f"{count} {kind}" for kind, count in sorted(tally.errors.items()))
    if tally.interrupted:
        text += f"; {tally.interrupted} were in flight when an earlier run was killed, and may be charged twice"
    return text
