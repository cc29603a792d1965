"""What suites with a judge share: its settings, prompts, and the error rows of questions that it did not judge."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jsfree.judge.judging import Judgement
from jsfree.judge.prompts import Prompt, load_prompt
from jsfree.schemas import ErrorRow

PROMPTS = "jsfree.evaluation.benchmarks.prompts"


def prompt(name: str, version: int = 1) -> Prompt:
    """A shipped prompt."""
    return load_prompt(PROMPTS, name, version)


def error_rows(judgements: Iterable[Judgement[Any]]) -> list[ErrorRow]:
    """The error rows of the requests without a judgement, with what the judge wrote instead."""
    return [
        {
            "sample_id": error.request_id,
            "stage": "judge",
            "kind": error.kind,
            "message": f"{error.message}: {error.text}" if error.text else error.message,
        }
        for error in (judgement.error for judgement in judgements)
        if error
    ]


def unknown_row(question_id: str, where: str) -> ErrorRow:
    """The error row of an answer to a question that the suite does not have."""
    place = f"{where}: " if where else ""
    return {
        "sample_id": question_id,
        "stage": "score",
        "kind": "unknown_question",
        "message": f"{place}the data have no question {question_id!r}; check 'question_id'",
    }
