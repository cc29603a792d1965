"""The layouts of preference pairs: how each writes a record, and what it reads out of one.

- ``trl``: https://huggingface.co/docs/trl/dataset_formats, conversational, with ``images``; Parquet or JSON lines;
- ``ms-swift``: https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html; JSON lines;
- ``llama-factory``: sharegpt with ``ranking``, https://github.com/hiyouga/LLaMA-Factory/tree/main/data; JSON;
- ``rlaif-v``: the columns of https://huggingface.co/datasets/openbmb/RLAIF-V-Dataset; Parquet;
- ``povid``: LLaVA's conversations twice, https://github.com/YiyangZhou/POVID; JSON.

Reading takes what others write too: plain texts for TRL's messages, images as paths or as ``{bytes, path}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from jsfree.config import PairFormat
from jsfree.errors import RowError
from jsfree.exchange.preferences import MARKER, Preference
from jsfree.texts import require_text

Record = Mapping[str, Any]
Placement = Literal["embed", "copy", "reference"]


class Placed(NamedTuple):
    """An image as a record has it: its path or URI (a name, where it is embedded), and its bytes if it is."""

    path: str
    bytes: bytes | None = None


class Parts(NamedTuple):
    """What a record says, its texts as they stand there; ``image`` is a path, a URI or ``{bytes, path}``."""

    id: str | None
    image: Any
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Format:
    """A layout: ``named`` are the keys of prompt, chosen and rejected caption, ``optional`` others that are read.

    ``table`` is the schema of its Parquet files and ``features`` says which of their columns are images, for Hugging
    Face datasets; ``text`` is the name of its file where it is text.
    """

    named: tuple[str, str, str]
    optional: tuple[str, ...]
    write: Callable[[Preference, Placed], dict[str, Any]]
    read: Callable[[Record], Parts]
    table: pa.Schema | None = None
    features: tuple[dict[str, Any], ...] = ()
    text: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """What every record has."""
        return tuple(dict.fromkeys(self.named))

    @property
    def placements(self) -> tuple[Placement, ...]:
        """The ways in which images can go with it, the usual one first."""
        found: list[Placement] = ["embed"] if self.table is not None else []
        return (*found, "copy", "reference") if self.text else tuple(found)


def _write_trl(pair: Preference, image: Placed) -> dict[str, Any]:
    asked = [{"type": "image"}, {"type": "text", "text": pair.prompt}]
    return {
        "images": [image.path if image.bytes is None else image._asdict()],
        "prompt": [{"role": "user", "content": asked}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": pair.chosen}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": pair.rejected}]}],
    }


def _read_trl(record: Record) -> Parts:
    def said(key: str, role: str) -> str:
        value = record.get(key)
        return _text(record, key) if isinstance(value, str) else _turns(value, key, "role", "content", role)[0]

    image = _one(record, "images") if record.get("images") is not None else record.get("image")
    return Parts(None, image, said("prompt", "user"), said("chosen", "assistant"), said("rejected", "assistant"))


def _write_swift(pair: Preference, image: Placed) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{MARKER}{pair.prompt}"}, {"role": "assistant", "content": pair.chosen}]
    return {"messages": messages, "images": [image.path], "rejected_response": pair.rejected}


def _read_swift(record: Record) -> Parts:
    prompt, chosen = _turns(record.get("messages"), "messages", "role", "content", "user", "assistant")
    return Parts(None, _one(record, "images"), prompt, chosen, _text(record, "rejected_response"))


def _write_factory(pair: Preference, image: Placed) -> dict[str, Any]:
    return {
        "conversations": [{"from": "human", "value": f"{MARKER}{pair.prompt}"}],
        "chosen": {"from": "gpt", "value": pair.chosen},
        "rejected": {"from": "gpt", "value": pair.rejected},
        "images": [image.path],
    }


def _read_factory(record: Record) -> Parts:
    def answer(key: str) -> str:
        message = record.get(key)
        if not isinstance(message, Mapping):
            raise RowError("malformed", f"key {key!r} is {_kind(message)}, expected a message of gpt")
        return _turns([message], key, "from", "value", "gpt")[0]

    prompt = _turns(record.get("conversations"), "conversations", "from", "value", "human")[0]
    return Parts(None, _one(record, "images"), prompt, answer("chosen"), answer("rejected"))


def _write_rlaif(pair: Preference, image: Placed) -> dict[str, Any]:
    known = pair.provenance
    return {
        "ds_name": "jsfree",
        "image": image._asdict(),
        "question": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "origin_dataset": known.source if known else "",
        "origin_split": json.dumps({"model": known.captioner if known else ""}),
        "idx": pair.id,
        "image_path": pair.image["uri"] or image.path,
    }


def _read_rlaif(record: Record) -> Parts:
    prompt, chosen, rejected = (_text(record, key) for key in ("question", "chosen", "rejected"))
    image = record.get("image")
    named = any(image.get(key) for key in ("bytes", "path")) if isinstance(image, Mapping) else image
    return Parts(_id(record, "idx"), image if named else record.get("image_path"), prompt, chosen, rejected)


def _write_povid(pair: Preference, image: Placed) -> dict[str, Any]:
    def talk(answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": f"{MARKER}\n{pair.prompt}"}, {"from": "gpt", "value": answer}]

    return {
        "id": pair.id,
        "image": image.path,
        "conversations": talk(pair.chosen),
        "rejected_conversations": talk(pair.rejected),
    }


def _read_povid(record: Record) -> Parts:
    (prompt, chosen), (again, rejected) = (
        _turns(record.get(key), key, "from", "value", "human", "gpt") for key in _TALKS
    )
    if prompt != again:
        raise RowError(
            "malformed", f"keys {_TALKS[0]!r} and {_TALKS[1]!r} ask different questions", "make them the same"
        )
    return Parts(_id(record, "id"), record.get("image"), prompt, chosen, rejected)


def _id(record: Record, key: str) -> str | None:
    """A record's id as text; None where it has none (null, or NaN as tables write it in a column of numbers)."""
    value = record.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return require_text(value, f"key {key!r}")
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
        raise RowError("malformed", f"key {key!r} is {_kind(value)}, expected a text or a number")
    return str(value)


def _text(record: Record, key: str) -> str:
    value = record.get(key)
    if isinstance(value, str):
        return require_text(value, f"key {key!r}")
    raise RowError("malformed", f"key {key!r} is {_kind(value)}, expected a text")


def _one(record: Record, key: str) -> Any:
    """The only image of a list of them."""
    images = record.get(key)
    if not isinstance(images, list | tuple):
        raise RowError("no_image", f"key {key!r} is {_kind(images)}, expected a list of one image", "remove the row")
    if not images:
        raise RowError("no_image", f"key {key!r} is an empty list", "a pair has one image, remove the row")
    if len(images) > 1:
        raise RowError("several_images", f"key {key!r} has {len(images)} images", "a pair has one, remove the row")
    return images[0]


def _turns(messages: Any, key: str, role_key: str, text_key: str, *roles: str) -> list[str]:
    """The texts of a conversation of exactly these turns."""
    if not isinstance(messages, list | tuple) or not all(isinstance(message, Mapping) for message in messages):
        raise RowError("malformed", f"key {key!r} is {_kind(messages)}, expected messages of {' and '.join(roles)}")
    found = [message.get(role_key) for message in messages]
    if found != list(roles):
        named = ", ".join(role if isinstance(role, str) else _kind(role) for role in found[:MAX_TURNS])
        raise RowError(
            "malformed",
            f"key {key!r} has the turns {named or 'none'} ({role_key!r}), expected {', '.join(roles)}:"
            " one question and its answer",
        )
    return [_content(message.get(text_key), f"{key}.{text_key}") for message in messages]


def _content(content: Any, key: str) -> str:
    """The text of a message: as it is, or in parts of which one may stand for the image."""
    if isinstance(content, str):
        return require_text(content, f"key {key!r}")
    if not isinstance(content, list | tuple) or not all(isinstance(part, Mapping) for part in content):
        raise RowError("malformed", f"key {key!r} is {_kind(content)}, expected a text")
    places: int = sum(part.get("type") == "image" for part in content)
    texts = [_text(part, "text") for part in content if part.get("type") == "text"]
    return MARKER * places + "\n".join(texts)


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, list | tuple) and value and not isinstance(value[0], Mapping):
        return f"a list of {type(value[0]).__name__}"
    return type(value).__name__


MAX_TURNS = 10
"""Turns of a conversation that a message names."""
_TALKS = ("conversations", "rejected_conversations")
_STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_MESSAGES = pa.list_(
    pa.struct({"role": pa.string(), "content": pa.list_(pa.struct({"type": pa.string(), "text": pa.string()}))})
)
_SAID = [
    {"name": "role", "dtype": "string"},
    {"name": "content", "list": [{"name": "type", "dtype": "string"}, {"name": "text", "dtype": "string"}]},
]
_RLAIF = ("ds_name", "image", "question", "chosen", "rejected", "origin_dataset", "origin_split", "idx", "image_path")

FORMATS: dict[PairFormat, Format] = {
    "trl": Format(
        ("prompt", "chosen", "rejected"),
        ("images", "image"),
        _write_trl,
        _read_trl,
        table=pa.schema({"images": pa.list_(_STRUCT), **dict.fromkeys(("prompt", "chosen", "rejected"), _MESSAGES)}),
        features=(
            {"name": "images", "sequence": "image"},
            *({"name": name, "list": _SAID} for name in ("prompt", "chosen", "rejected")),
        ),
        text="train.jsonl",
    ),
    "ms-swift": Format(
        ("messages", "messages", "rejected_response"), ("images",), _write_swift, _read_swift, text="train.jsonl"
    ),
    "llama-factory": Format(
        ("conversations", "chosen", "rejected"), ("images",), _write_factory, _read_factory, text="train.json"
    ),
    "rlaif-v": Format(
        ("question", "chosen", "rejected"),
        ("image", "image_path", "idx"),
        _write_rlaif,
        _read_rlaif,
        table=pa.schema({name: _STRUCT if name == "image" else pa.string() for name in _RLAIF}),
        features=tuple({"name": name, "dtype": "image" if name == "image" else "string"} for name in _RLAIF),
    ),
    "povid": Format((_TALKS[0], *_TALKS), ("id", "image"), _write_povid, _read_povid, text="train.json"),
}


def fitting(keys: Sequence[str]) -> list[PairFormat]:
    """Layouts that records with these keys could be of."""
    return [name for name, layout in FORMATS.items() if set(layout.keys) <= set(keys)]
