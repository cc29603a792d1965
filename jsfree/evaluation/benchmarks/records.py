"""Records of a benchmark's data files: a JSON list or JSON lines, with checked keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.data_paths import DataPath

NAMES = {str: "a string", int: "a number", list: "a list", dict: "an object"}


class Record(NamedTuple):
    """One record, and its file with line or position, for messages."""

    place: str
    values: dict[str, Any]


def read_records(path: DataPath, keys: Mapping[str, type]) -> list[Record]:
    """Read the records of a file.

    Args:
        keys: required keys and the types of their values.

    Raises:
        SourceError: the file cannot be read, or a record is wrong; the message names file, line and key.
    """
    records = list(_parse(path))
    if not records:
        raise SourceError(f"{path} holds no records", "download it again")
    for record in records:
        for key, kind in keys.items():
            if key not in record.values:
                raise SourceError(f"{record.place} has no {key!r}", "repair the file, or download it again")
            if not isinstance(record.values[key], kind):
                raise SourceError(f"{record.place}: {key!r} is not {NAMES[kind]}", "repair it")
    return records


def read_object(path: DataPath, kind: type) -> dict[str, Any]:
    """Read a file with one JSON object whose values have the type ``kind``.

    Raises:
        SourceError: the file cannot be read or has other content.
    """
    content = _load(_read(path), str(path))
    if not isinstance(content, dict):
        raise SourceError(f"{path} holds no JSON object", "download it again")
    for key, value in content.items():
        if not isinstance(value, kind):
            raise SourceError(f"{path}: {key!r} is not {NAMES[kind]}", "repair it")
    return content


def _parse(path: DataPath) -> Iterator[Record]:
    text = _read(path)
    if text.lstrip().startswith("["):
        values = _load(text, str(path))
        places = (f"{path}, record {number}" for number in range(len(values)))
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        values = [_load(line, f"{path}, line {number}") for number, line in lines]
        places = (f"{path}, line {number}" for number, _ in lines)
    for place, value in zip(places, values, strict=True):
        if not isinstance(value, dict):
            raise SourceError(f"{place} is no JSON object", "repair it, or download the file again")
        yield Record(place, value)


def _read(path: DataPath) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}", "name a JSON file in UTF-8") from error


def _load(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SourceError(f"{place} is not valid JSON ({error})", "repair it, or download the file again") from error
