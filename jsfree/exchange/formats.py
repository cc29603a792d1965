"""The formats of preference pairs: each writes a pair as a record, and reads a record.

- ``trl``: https://huggingface.co/docs/trl/dataset_formats, conversational, with ``images``; Parquet or JSON lines;
- ``ms-swift``: https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html; JSON lines;
- ``llama-factory``: sharegpt with ``ranking``, https://github.com/hiyouga/LLaMA-Factory/tree/main/data; JSON;
- ``rlaif-v``: the columns of https://huggingface.co/datasets/openbmb/RLAIF-V-Dataset; Parquet;
- ``povid``: LLaVA's conversations twice, https://github.com/YiyangZhou/POVID; JSON.

Reading accepts variants: plain texts instead of TRL's messages, images as paths or as ``{bytes, path}``.
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


class StoredImage(NamedTuple):
    """An image in a record: its path or URI, or if it is embedded its name and bytes."""

    path: str
    bytes: bytes | None = None


class Fields(NamedTuple):
    """The fields of a record, texts unchanged; ``image`` is a path, a URI or ``{bytes, path}``."""

    id: str | None
    image: Any
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Format:
    """A format: ``named`` are the keys of prompt, chosen and rejected caption, ``optional`` other keys that are read.

    ``table`` is the schema of its Parquet files, and ``features`` marks their image columns for Hugging Face datasets;
    ``text`` is the name of its text file, if it has one. ``extensible``: its readers ignore further keys of a record.
    """

    named: tuple[str, str, str]
    optional: tuple[str, ...]
    write: Callable[[Preference, StoredImage], dict[str, Any]]
    read: Callable[[Record], Fields]
    table: pa.Schema | None = None
    features: tuple[dict[str, Any], ...] = ()
    text: str | None = None
    extensible: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of every record."""
        return tuple(dict.fromkeys(self.named))

    @property
    def placements(self) -> tuple[Placement, ...]:
        """The supported ways to store images, the default first."""
        embedded: tuple[Placement, ...] = ("embed",) if self.table is not None else ()
        return (*embedded, "copy", "reference") if self.text else embedded


def _write_trl(pair: Preference, image: StoredImage) -> dict[str, Any]:
    question = [{"type": "image"}, {"type": "text", "text": pair.prompt}]
    return {
        "images": [image.path if image.bytes is None else image._asdict()],
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": pair.chosen}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": pair.rejected}]}],
    }


def _read_trl(record: Record) -> Fields:
    def text(key: str, role: str) -> str:
        value = record.get(key)
        return _text(record, key) if isinstance(value, str) else _turns(value, key, "role", "content", role)[0]

    image = _single_image(record, "images") if record.get("images") is not None else record.get("image")
    return Fields(None, image, text("prompt", "user"), text("chosen", "assistant"), text("rejected", "assistant"))


def _write_swift(pair: Preference, image: StoredImage) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{MARKER}{pair.prompt}"}, {"role": "assistant", "content": pair.chosen}]
    return {"messages": messages, "images": [image.path], "rejected_response": pair.rejected}


def _read_swift(record: Record) -> Fields:
    prompt, chosen = _turns(record.get("messages"), "messages", "role", "content", "user", "assistant")
    return Fields(None, _single_image(record, "images"), prompt, chosen, _text(record, "rejected_response"))


def _write_factory(pair: Preference, image: StoredImage) -> dict[str, Any]:
    return {
        "conversations": [{"from": "human", "value": f"{MARKER}{pair.prompt}"}],
        "chosen": {"from": "gpt", "value": pair.chosen},
        "rejected": {"from": "gpt", "value": pair.rejected},
        "images": [image.path],
    }


def _read_factory(record: Record) -> Fields:
    def answer(key: str) -> str:
        message = record.get(key)
        if not isinstance(message, Mapping):
            raise RowError("malformed", f"key {key!r} is {_kind(message)}, expected a message of gpt")
        return _turns([message], key, "from", "value", "gpt")[0]

    prompt = _turns(record.get("conversations"), "conversations", "from", "value", "human")[0]
    return Fields(None, _single_image(record, "images"), prompt, answer("chosen"), answer("rejected"))


def _write_rlaif(pair: Preference, image: StoredImage) -> dict[str, Any]:
    provenance = pair.provenance
    return {
        "ds_name": "jsfree",
        "image": image._asdict(),
        "question": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "origin_dataset": provenance.source if provenance else "",
        "origin_split": json.dumps({"model": provenance.captioner if provenance else ""}),
        "idx": pair.id,
        "image_path": pair.image["uri"] or image.path,
    }


def _read_rlaif(record: Record) -> Fields:
    prompt, chosen, rejected = (_text(record, key) for key in ("question", "chosen", "rejected"))
    image = record.get("image")
    given = any(image.get(key) for key in ("bytes", "path")) if isinstance(image, Mapping) else image
    return Fields(_id(record, "idx"), image if given else record.get("image_path"), prompt, chosen, rejected)


def _write_povid(pair: Preference, image: StoredImage) -> dict[str, Any]:
    def conversation(answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": f"{MARKER}\n{pair.prompt}"}, {"from": "gpt", "value": answer}]

    return {
        "id": pair.id,
        "image": image.path,
        "conversations": conversation(pair.chosen),
        "rejected_conversations": conversation(pair.rejected),
    }


def _read_povid(record: Record) -> Fields:
    (prompt, chosen), (other_prompt, rejected) = (
        _turns(record.get(key), key, "from", "value", "human", "gpt") for key in _CONVERSATIONS
    )
    if prompt != other_prompt:
        raise RowError(
            "malformed",
            f"keys {_CONVERSATIONS[0]!r} and {_CONVERSATIONS[1]!r} ask different questions",
            "make them the same",
        )
    return Fields(_id(record, "id"), record.get("image"), prompt, chosen, rejected)


def _id(record: Record, key: str) -> str | None:
    """A record's id as text; None if it is null, or NaN, which columns of numbers contain instead."""
    value = record.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return require_text(value, f"key {key!r}")
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
        raise RowError("malformed", f"key {key!r} is {_kind(value)}, expected a string or a number")
    return str(value)


def _text(record: Record, key: str) -> str:
    value = record.get(key)
    if isinstance(value, str):
        return require_text(value, f"key {key!r}")
    raise RowError("malformed", f"key {key!r} is {_kind(value)}, expected a string")


def _single_image(record: Record, key: str) -> Any:
    """The only image of a list."""
    images = record.get(key)
    if not isinstance(images, list | tuple):
        raise RowError("no_image", f"key {key!r} is {_kind(images)}, expected a list of one image", "remove the row")
    if not images:
        raise RowError("no_image", f"key {key!r} is an empty list, but a pair has one image", "remove the row")
    if len(images) > 1:
        raise RowError("several_images", f"key {key!r} has {len(images)} images, but a pair has one", "remove the row")
    return images[0]


def _turns(messages: Any, key: str, role_key: str, text_key: str, *roles: str) -> list[str]:
    """The texts of a conversation with exactly these roles."""
    if not isinstance(messages, list | tuple) or not all(isinstance(message, Mapping) for message in messages):
        raise RowError("malformed", f"key {key!r} is {_kind(messages)}, expected messages of {' and '.join(roles)}")
    given = [message.get(role_key) for message in messages]
    if given != list(roles):
        named = ", ".join(role if isinstance(role, str) else _kind(role) for role in given[:MAX_TURNS])
        raise RowError(
            "malformed",
            f"key {key!r} has the turns {named or 'none'} ({role_key!r}), expected {', '.join(roles)}:"
            " one question and its answer",
        )
    return [_content(message.get(text_key), f"{key}.{text_key}") for message in messages]


def _content(content: Any, key: str) -> str:
    """The text of a message, given as a text or as parts, one of which may be the image."""
    if isinstance(content, str):
        return require_text(content, f"key {key!r}")
    if not isinstance(content, list | tuple) or not all(isinstance(part, Mapping) for part in content):
        raise RowError("malformed", f"key {key!r} is {_kind(content)}, expected a string")
    images: int = sum(part.get("type") == "image" for part in content)
    texts = [_text(part, "text") for part in content if part.get("type") == "text"]
    return MARKER * images + "\n".join(texts)


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, list | tuple) and value and not isinstance(value[0], Mapping):
        return f"a list of {type(value[0]).__name__}"
    return type(value).__name__


MAX_TURNS = 10
"""Turns of a conversation listed in an error message."""
_CONVERSATIONS = ("conversations", "rejected_conversations")
_STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_MESSAGES = pa.list_(
    pa.struct({"role": pa.string(), "content": pa.list_(pa.struct({"type": pa.string(), "text": pa.string()}))})
)
_MESSAGE_FEATURES = [
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
            *({"name": name, "list": _MESSAGE_FEATURES} for name in ("prompt", "chosen", "rejected")),
        ),
        text="train.jsonl",
        extensible=True,
    ),
    "ms-swift": Format(
        ("messages", "messages", "rejected_response"), ("images",), _write_swift, _read_swift, text="train.jsonl"
    ),
    "llama-factory": Format(
        ("conversations", "chosen", "rejected"),
        ("images",),
        _write_factory,
        _read_factory,
        text="train.json",
        extensible=True,
    ),
    "rlaif-v": Format(
        ("question", "chosen", "rejected"),
        ("image", "image_path", "idx"),
        _write_rlaif,
        _read_rlaif,
        table=pa.schema({name: _STRUCT if name == "image" else pa.string() for name in _RLAIF}),
        features=tuple({"name": name, "dtype": "image" if name == "image" else "string"} for name in _RLAIF),
    ),
    "povid": Format(
        (_CONVERSATIONS[0], *_CONVERSATIONS),
        ("id", "image"),
        _write_povid,
        _read_povid,
        text="train.json",
        extensible=True,
    ),
}


def matching_formats(keys: Sequence[str]) -> list[PairFormat]:
    """The formats whose records have these keys."""
    return [name for name, layout in FORMATS.items() if set(layout.keys) <= set(keys)]
