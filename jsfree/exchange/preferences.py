"""A preference pair as all formats have it: an image, a prompt, a chosen and a rejected caption."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from jsfree.errors import RowError
from jsfree.exchange.composition import composition
from jsfree.schemas import ImageRef, ScoredCaption, SelectedPair

MARKER = "<image>"
"""The placeholder of the image in formats of plain text."""


@dataclass(frozen=True)
class CaptionOrigin:
    """The hallucination ratio of a caption (None if unknown) and its CLIP score."""

    ratio: float | None
    score: float


@dataclass(frozen=True)
class Provenance:
    """The origin of a pair: kind of source, captioner, ratios and scores.

    ``gap`` is the chosen caption's score minus the rejected one's.
    """

    source: str
    captioner: str
    chosen: CaptionOrigin
    rejected: CaptionOrigin
    inverted: bool
    gap: float


@dataclass(frozen=True)
class Preference:
    """A pair: ``id`` is stable within its set, ``image`` has a URI or bytes.

    ``composition`` holds the fields of a pair that was formed from verified sentences (``exchange.composition``).
    """

    id: str
    image: ImageRef
    prompt: str
    chosen: str
    rejected: str
    provenance: Provenance | None = None
    composition: dict[str, Any] = field(default_factory=dict)

    def provenance_row(self) -> dict[str, Any]:
        """The row of ``provenance.jsonl``: id, provenance and composition, without the texts of the pair."""
        return {"id": self.id, **(asdict(self.provenance) if self.provenance else {}), **self.composition}


def preference(pair: SelectedPair, source: str, captioner: str) -> Preference:
    """Convert a pair of a run."""
    provenance = Provenance(
        source,
        captioner,
        _caption_origin(pair["chosen"]),
        _caption_origin(pair["rejected"]),
        pair["inverted"],
        pair["gap"],
    )
    image = pair["image"]
    texts = pair["chosen"]["text"], pair["rejected"]["text"]
    return Preference(image["id"], image, pair["prompt"], *texts, provenance, composition(pair))


def without_marker(text: str, key: str) -> str:
    """Remove the placeholder of the image from a prompt.

    Raises:
        RowError: it has several placeholders.
    """
    if text.count(MARKER) > 1:
        raise RowError(
            "several_images",
            f"key {key!r} has {text.count(MARKER)} times {MARKER!r}, a pair has one image",
            "remove the row",
        )
    return text.replace(MARKER, "").strip()


def _caption_origin(caption: ScoredCaption) -> CaptionOrigin:
    return CaptionOrigin(caption["ratio"], caption["score"])
