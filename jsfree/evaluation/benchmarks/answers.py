"""Files of answers by any model: JSON lines, a JSON list, or CHAIR's ``{"imgToEval": {...}}``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.base import Answer, Question

IMAGE_KEYS = ("image_id", "image")
QUESTION_KEYS = ("question_id", "id")
TEXT_KEYS = ("caption", "text", "answer", "response", "model_answer")


def read_answers(path: str | Path, questions: Sequence[Question] = ()) -> list[Answer]:
    """Read a file of answers. Each has a text, and the id of its image, of its question, or of both.

    Args:
        questions: the suite's questions, which give the images of answers that have only a question's id. As many
            answers without any id are taken to be in the order of the questions.

    Raises:
        SourceError: the file cannot be read, or a record is wrong; the message names its line and key.
    """
    images = {question.question_id: question.image["id"] for question in questions}
    records = list(_records(Path(path)))
    if len(records) == len(questions):
        records = [(place, _with_id(record, each)) for (place, record), each in zip(records, questions, strict=True)]
    answers = [_answer(record, place, images) for place, record in records]
    if not answers:
        raise SourceError(f"{path} holds no answers", 'write one JSON object a line: {"image_id": ..., "caption": ...}')
    return answers


def _with_id(record: Any, question: Question) -> Any:
    """A record with the id of a question if it has none."""
    if not isinstance(record, dict) or any(key in record for key in (*IMAGE_KEYS, *QUESTION_KEYS)):
        return record
    return {"question_id": question.question_id, **record}


def _answer(record: Any, place: str, images: Mapping[str, str]) -> Answer:
    if not isinstance(record, dict):
        raise SourceError(f"{place}: a JSON object is expected", 'such as {"image_id": 42, "caption": "A dog."}')
    text_key = _first(record, TEXT_KEYS, place)
    text = record[text_key]
    if not isinstance(text, str):
        raise SourceError(f"{place}: {text_key!r} is not a string", "write the model's answer there as a string")
    question_key = next((key for key in QUESTION_KEYS if key in record), None)
    question = None if question_key is None else _id(record, question_key, place)
    if question in images and not any(key in record for key in IMAGE_KEYS):
        image = images[str(question)]
    else:
        image = _id(
            record, _first(record, IMAGE_KEYS if question is None else (*IMAGE_KEYS, *QUESTION_KEYS), place), place
        )
    extra = {key: value for key, value in record.items() if key not in (text_key, *IMAGE_KEYS, *QUESTION_KEYS)}
    return Answer(question or image, image, text, extra, place)


def _id(record: Mapping[str, Any], key: str, place: str) -> str:
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise SourceError(f"{place}: {key!r} is {value!r}", "write a number or a string")
    return str(value)


def _first(record: Mapping[str, Any], keys: Sequence[str], place: str) -> str:
    key = next((key for key in keys if key in record), None)
    if key is None:
        names = ", ".join(repr(name) for name in keys)
        raise SourceError(f"{place} has none of the keys {names}", "add one of them")
    return key


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"the answers {path} cannot be read: {error}", "name a JSON or JSON lines file") from error
    whole = _json_or_none(text)
    if isinstance(whole, dict) and isinstance(whole.get("imgToEval"), dict):
        yield from ((f"{path}, imgToEval[{key!r}]", record) for key, record in whole["imgToEval"].items())
    elif isinstance(whole, list):
        yield from ((f"{path}, record {number}", record) for number, record in enumerate(whole))
    else:
        yield from _lines(text, path)


def _lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except ValueError as error:
            raise SourceError(
                f"{path}, line {number} is not valid JSON ({error})", "write one JSON object a line"
            ) from error


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def require_unique(answers: Sequence[Answer], key: str = "question_id") -> None:
    """Check that no question was answered twice.

    Raises:
        SourceError: two answers have the same id.
    """
    seen: dict[str, str] = {}
    for answer in answers:
        value = str(getattr(answer, key))
        if value in seen:
            raise SourceError(
                f"{answer.where}: {key} {value!r} occurs again (first: {seen[value]})", "keep one answer of each"
            )
        seen[value] = answer.where
