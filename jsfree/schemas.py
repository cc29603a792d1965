"""Arrow schemas of the tables of a run, and the types of their rows.

Each row describes a sample and is identified by ``sample_id`` (image and prompt), never by position. Each of the tables
samples -> pairs -> scored -> selected adds columns to the previous one; captions and errors are separate. With
``generate.samples``, pairs and scored have a column more (``PAIRS_WITH_CANDIDATES``, ``SCORED_WITH_CANDIDATES``), with
``clip.second``, scored has two more, and with ``select.strategy: coverage``, selected has two more (``COMPOSED``); the
other columns stay the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, TypedDict

import pyarrow as pa

from jsfree.errors import RowError

Role = str  # "low" (the provisional winner's lower ratio), "high", or "sample-1", "sample-2"...
LOW, HIGH, SAMPLE = "low", "high", "sample"
EVALUATION_IMAGE = "evaluation_image"
"""Kind of error rows for training images that are in the evaluation set. They count as excluded, not as failed."""


class ImageRef(TypedDict):
    """An image, with either ``uri`` or ``bytes``; ``id`` is stable within a source, ``sha256`` is that of the file."""

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
    """A caption with its hallucination ratio, tokens and finish reason (``stop`` or ``length``).

    ``ratio`` is None for imported captions.
    """

    ratio: float | None
    text: str
    token_ids: list[int]
    finish: str


class Candidate(Decoded):
    """One of all captions of an image, the pair included, with what verification needs.

    ``role`` is ``low``, ``high``, or ``sample-1``, ``sample-2``...; ``logps`` is log p_c of every token, in nats;
    ``unconditional_logps`` is log p_u of every token, empty for captions at h = 0; ``ends`` is the end of every token
    in ``text``, in characters.
    """

    role: str
    logps: list[float]
    unconditional_logps: list[float]
    ends: list[int]


class ScoredCandidate(Candidate):
    """A candidate with its sentence scores."""

    sentences: list[SentenceScore]


class Edit(TypedDict):
    """A sentence of a composed caption, or one that was left out of it.

    ``action`` is ``kept``, ``removed``, ``repeated`` (removed as a repetition) or ``added``; ``role`` is the candidate
    that the wording is from; ``logit`` is the verifier's log-odds that the sentence is true.
    """

    text: str
    action: str
    role: str
    logit: float


class Composed(TypedDict):
    """A caption composed of verified sentences, and how it differs from the candidate ``role`` that it is based on."""

    role: str
    text: str
    token_ids: list[int]
    edits: list[Edit]


class Provenance(TypedDict):
    """The candidates that a preference pair is from.

    ``edit`` is ``none``, or what was done to the chosen caption to make the rejected one: ``omitted`` or ``repeated``
    the sentence ``sentence``.
    """

    chosen: str
    rejected: str
    edit: str
    sentence: str


class Pair(Sample):
    """Two captions of an image. ``low`` has the lower ratio and is the provisional winner."""

    low: Decoded
    high: Decoded
    seed: int


class SentenceScore(TypedDict):
    """A sentence (or sub-sentence) and its score: the CLIP cosine with the image, or as ``score.judge``."""

    text: str
    score: float


class PairWithCandidates(Pair):
    """A pair with all captions of its image, of which it is a part."""

    candidates: list[Candidate]


class ScoredCaption(Decoded):
    """A caption with its sentence scores and their mean."""

    sentences: list[SentenceScore]
    score: float


class ScoredPair(Sample):
    """A pair with scores. ``inverted``: the provisional loser scores higher. ``gap``: higher - lower score.

    With a second scorer (``clip.second``), scores and gap are those of the first, and ``inverted`` is what both say.
    """

    low: ScoredCaption
    high: ScoredCaption
    seed: int
    inverted: bool
    gap: float


class CaptionScores(TypedDict):
    """Scores of a caption by the second scorer, whose text context may divide sentences elsewhere."""

    sentences: list[SentenceScore]
    score: float


class TwiceScoredPair(ScoredPair):
    """A pair with the scores of a second scorer."""

    second_low: CaptionScores
    second_high: CaptionScores


class SelectedPair(ScoredPair):
    """A preference pair. ``rank``: position in the order of gaps, from 0; ``split``: from 1.

    With a second scorer, ``gap`` is in units of the scorers' spreads (``stages.agreement``).
    """

    chosen: ScoredCaption
    rejected: ScoredCaption
    rank: int
    split: int


class ComposedPair(SelectedPair):
    """A preference pair of ``select.strategy: coverage``. ``split`` is 0 if ``rejected`` is an edit of ``chosen``."""

    target: Composed
    provenance: Provenance


class CaptionRow(Sample):
    """A caption for evaluation, by the model ``model`` with the decoding settings ``mode``."""

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
    """A failed row: the stage, the kind of error, and its message."""

    sample_id: str
    stage: str
    kind: str
    message: str


def error_row(sample_id: str, stage: str, error: RowError) -> ErrorRow:
    """Create the row of ``errors/`` for a sample that failed in a stage."""
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

_SECOND_CAPTION = pa.struct({"sentences": pa.list_(_SENTENCE), "score": pa.float64()})
_SECOND = {"second_low": _SECOND_CAPTION, "second_high": _SECOND_CAPTION}

_CANDIDATE = {
    "role": pa.string(),
    **_DECODED,
    "logps": pa.list_(pa.float32()),
    "unconditional_logps": pa.list_(pa.float32()),
    "ends": pa.list_(pa.int32()),
}
_CANDIDATES = {"candidates": pa.list_(pa.struct(_CANDIDATE))}
_SCORED_CANDIDATES = {"candidates": pa.list_(pa.struct({**_CANDIDATE, "sentences": pa.list_(_SENTENCE)}))}
_EDIT = pa.struct({"text": pa.string(), "action": pa.string(), "role": pa.string(), "logit": pa.float64()})
_TARGET = pa.struct(
    {"role": pa.string(), "text": pa.string(), "token_ids": pa.list_(pa.int32()), "edits": pa.list_(_EDIT)}
)
_PROVENANCE = pa.struct({"chosen": pa.string(), "rejected": pa.string(), "edit": pa.string(), "sentence": pa.string()})

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
PAIRS_WITH_CANDIDATES = pa.schema([*PAIRS, *pa.schema(_CANDIDATES)])
SCORED = pa.schema(_SCORED)
SCORED_WITH_CANDIDATES = pa.schema([*SCORED, *pa.schema(_SCORED_CANDIDATES)])
SELECTED = pa.schema(
    {**_SCORED, "chosen": SCORED_CAPTION, "rejected": SCORED_CAPTION, "rank": pa.int64(), "split": pa.int32()}
)
COMPOSED = pa.schema([*SELECTED, pa.field("target", _TARGET), pa.field("provenance", _PROVENANCE)])
LIKELIHOODS = pa.schema({"sample_id": pa.string(), "logps": pa.list_(pa.list_(pa.float32()))})


def pairs_schema(samples: int) -> pa.Schema:
    """The schema of pairs with ``samples`` further captions per image (``generate.samples``)."""
    return PAIRS_WITH_CANDIDATES if samples else PAIRS


def scored_schema(samples: int, scorers: int = 1) -> pa.Schema:
    """The schema of scored pairs with ``samples`` further captions per image (``generate.samples``).

    Args:
        scorers: number of CLIP models that score pairs (``clip.second``).
    """
    schema = SCORED_WITH_CANDIDATES if samples else SCORED
    return pa.schema([*schema, *pa.schema(_SECOND)]) if scorers > 1 else schema


def selected_schema(strategy: str) -> pa.Schema:
    """The schema of selected pairs of a strategy (``select.strategy``)."""
    return COMPOSED if strategy == "coverage" else SELECTED


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
    """Key of a sample: the image id and a short hash of the prompt."""
    return f"{image_id}@{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


@dataclass
class StageOutput:
    """Result of a stage class for a batch.

    Attributes:
        rows: rows of the schema of the stage.
        errors: failed rows.
        tokens: number of processed tokens.
        second_stage: output of the following stage for these rows, if the class performs both stages.
        second_stage_seconds: time for the second stage.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[ErrorRow] = field(default_factory=list)
    tokens: int = 0
    second_stage: StageOutput | None = None
    second_stage_seconds: float = 0.0

    @property
    def excluded(self) -> int:
        """Number of rows excluded because their image is in the evaluation set. Other error rows have failed."""
        return sum(error["kind"] == EVALUATION_IMAGE for error in self.errors)
