"""How a pair was formed from the candidates of an image, as further fields of exported records.

Pairs of ``select.strategy: coverage`` have them; the fields are those of the run's own table without tokens.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from jsfree import schemas
from jsfree.schemas import SelectedPair

_ORIGIN = schemas.COMPOSED.field("provenance").type
_CAPTION = pa.struct([field for field in schemas.COMPOSED.field("target").type if field.name != "token_ids"])
_EDIT = _CAPTION.field("edits").type.value_type
TABLE = pa.schema({"provenance": _ORIGIN, "composed": _CAPTION})
"""Columns of the fields in Parquet files."""


def composition(pair: SelectedPair) -> dict[str, Any]:
    """The fields ``provenance`` and ``composed`` of a pair; empty if its caption was not composed.

    ``provenance`` names the candidates of the chosen and the rejected caption and what was done to the latter;
    ``composed`` is the composed caption and what was done to each sentence of the candidate that it is based on.
    """
    row: dict[str, Any] = {**pair}
    if "target" not in row:
        return {}
    return {"provenance": row["provenance"], "composed": {field.name: row["target"][field.name] for field in _CAPTION}}


def features() -> tuple[dict[str, Any], ...]:
    """The fields as features of Hugging Face datasets."""
    parts = [{"name": "edits", "list": _flat(_EDIT)} if name == "edits" else _text(name) for name in _names(_CAPTION)]
    return {"name": "provenance", "struct": _flat(_ORIGIN)}, {"name": "composed", "struct": parts}


def _flat(struct: pa.StructType) -> list[dict[str, Any]]:
    return [{"name": "logit", "dtype": "float64"} if name == "logit" else _text(name) for name in _names(struct)]


def _names(struct: pa.StructType) -> list[str]:
    return [field.name for field in struct]


def _text(name: str) -> dict[str, Any]:
    return {"name": name, "dtype": "string"}
