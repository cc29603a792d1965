"""Arrow schemas of every table of a run, and the rows they hold.

One row a sample, keyed by ``sample_id`` (image and prompt together), never by position. Each table adds
columns to the one before: samples -> pairs -> scored -> selected; captions and errors stand beside them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, TypedDict

import pyarrow as pa

from jsfree.errors import RowError

Role = str  # "low" (the provisional winner's lower ratio) or "high"
LOW, HIGH = "low", "high"
EVALUATION_IMAGE = "evaluation_image"
"""Kind of an error row for a training image that is also in the evaluation set: excluded, not failed."""


class ImageRef(TypedDict):
    """An image: ``uri`` or ``bytes``; ``id`` is stable within its source, ``sha256`` is of the encoded file."""

    id: str
    uri: str | None
    bytes: bytes | None
    sha256: str | None


class Sample(TypedDict):
    """One image with one prompt."""

    sample_id: str
    image: ImageRef
    prompt: str


class Decoded(TypedDict):
    """A caption: its hallucination ratio, completion tokens and how it ended (``stop`` | ``length``).

    ``ratio`` is None where somebody else made the caption.
    """

    ratio: float | None
    text: str
    token_ids: list[int]
    finish: str


class Pair(Sample):
    """Two captions of an image; ``low`` has the lower ratio and is the provisional winner."""

    low: Decoded
    high: Decoded
    seed: int


class SentenceScore(TypedDict):
    """A sentence (or sub-sentence) and its CLIP cosine with the image."""

    text: str
    score: float


class ScoredCaption(Decoded):
    """A caption with its sentence scores and their mean."""

    sentences: list[SentenceScore]
    score: float


class ScoredPair(Sample):
    """A pair with scores. ``inverted``: the provisional loser scores higher. ``gap`` >= 0: higher - lower score."""

    low: ScoredCaption
    high: ScoredCaption
    seed: int
    inverted: bool
    gap: float


class SelectedPair(ScoredPair):
    """A preference pair: ``rank`` in the order of gaps, ``split`` from 1."""

    chosen: ScoredCaption
    rejected: ScoredCaption
    rank: int
    split: int


class CaptionRow(Sample):
    """A caption of a model for evaluation."""

    model: str
    mode: str
    text: str
    token_ids: list[int]
    finish: str


class ScoredCaptionRow(CaptionRow):
    """A caption for evaluation with its sentence scores and their mean."""

    sentences: list[SentenceScore]
    score: float


class ErrorRow(TypedDict):
    """A row that failed: where, which kind of failure, and its message."""

    sample_id: str
    stage: str
    kind: str
    message: str


def error_row(sample_id: str, stage: str, error: RowError) -> ErrorRow:
    """The row of ``errors/`` for a sample that failed in a stage."""
    return {"sample_id": sample_id, "stage": stage, "kind": error.kind, "message": str(error)}


IMAGE = pa.struct({"id": pa.string(), "uri": pa.string(), "bytes": pa.binary(), "sha256": pa.string()})
_DECODED = {
    "ratio": pa.float64(),
    "text": pa.string(),
    "token_ids": pa.list_(pa.int32()),
    "finish": pa.string(),
}
_SENTENCE = pa.struct({"text": pa.string(), "score": pa.float64()})
DECODED = pa.struct(_DECODED)
SCORED_CAPTION = pa.struct({**_DECODED, "sentences": pa.list_(_SENTENCE), "score": pa.float64()})

_SAMPLES = {"sample_id": pa.string(), "image": IMAGE, "prompt": pa.string()}
_SCORED = {
    **_SAMPLES,
    "low": SCORED_CAPTION,
    "high": SCORED_CAPTION,
    "seed": pa.int64(),
    "inverted": pa.bool_(),
    "gap": pa.float64(),
}
SAMPLES = pa.schema(_SAMPLES)
PAIRS = pa.schema({**_SAMPLES, "low": DECODED, "high": DECODED, "seed": pa.int64()})
SCORED = pa.schema(_SCORED)
SELECTED = pa.schema(
    {**_SCORED, "chosen": SCORED_CAPTION, "rejected": SCORED_CAPTION, "rank": pa.int64(), "split": pa.int32()}
)
EVALUATION_HASHES = pa.schema({"sample_id": pa.string(), "sha256": pa.string()})
REFERENCE = pa.schema({"sample_id": pa.string(), "chosen": pa.float64(), "rejected": pa.float64()})
_CAPTIONS = {
    **_SAMPLES,
    "model": pa.string(),
    "mode": pa.string(),
    "text": pa.string(),
    "token_ids": pa.list_(pa.int32()),
    "finish": pa.string(),
}
CAPTIONS = pa.schema(_CAPTIONS)
SCORED_CAPTIONS = pa.schema({**_CAPTIONS, "sentences": pa.list_(_SENTENCE), "score": pa.float64()})
ERRORS = pa.schema({"sample_id": pa.string(), "stage": pa.string(), "kind": pa.string(), "message": pa.string()})


def sample_id(image_id: str, prompt: str) -> str:
    """The key of a sample: the image's id and a short hash of the prompt."""
    return f"{image_id}@{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


@dataclass
class StageOutput:
    """What a stage class returns for a batch: rows of its schema, rows that failed, and tokens processed.

    ``second_stage`` is the output of a second stage for the same rows, if the class does its work too; it took
    ``second_stage_seconds``.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[ErrorRow] = field(default_factory=list)
    tokens: int = 0
    second_stage: StageOutput | None = None
    second_stage_seconds: float = 0.0

    @property
    def excluded(self) -> int:
        """Error rows of images that are also in the evaluation set; the other error rows failed."""
        return sum(error["kind"] == EVALUATION_IMAGE for error in self.errors)
