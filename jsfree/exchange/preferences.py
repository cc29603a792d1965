"""A preference pair as all layouts know it: an image, a prompt, and two captions with the better one named."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jsfree.errors import RowError
from jsfree.schemas import ImageRef, ScoredCaption, SelectedPair

MARKER = "<image>"
"""What layouts of plain text put where the image is."""


@dataclass(frozen=True)
class Made:
    """How a caption came to be: its hallucination ratio, None where nobody knows it, and its CLIP score."""

    ratio: float | None
    score: float


@dataclass(frozen=True)
class Provenance:
    """Where a pair comes from: kind of source, captioner, and what the run found out about it.

    ``gap`` is the chosen caption's score less the rejected one's.
    """

    source: str
    captioner: str
    chosen: Made
    rejected: Made
    inverted: bool
    gap: float


@dataclass(frozen=True)
class Preference:
    """A pair: ``id`` is stable within its set, ``image`` has a URI or bytes."""

    id: str
    image: ImageRef
    prompt: str
    chosen: str
    rejected: str
    provenance: Provenance | None = None

    def told(self) -> dict[str, Any]:
        """The pair without its texts, for ``provenance.jsonl``."""
        return {"id": self.id, **(asdict(self.provenance) if self.provenance else {})}


def preference(pair: SelectedPair, source: str, captioner: str) -> Preference:
    """A pair of a run as others take it."""
    provenance = Provenance(
        source, captioner, _made(pair["chosen"]), _made(pair["rejected"]), pair["inverted"], pair["gap"]
    )
    image = pair["image"]
    return Preference(image["id"], image, pair["prompt"], pair["chosen"]["text"], pair["rejected"]["text"], provenance)


def without_marker(text: str, key: str) -> str:
    """A prompt without the place of its image.

    Raises:
        RowError: it has places for several images.
    """
    if text.count(MARKER) > 1:
        raise RowError(
            "several_images", f"key {key!r} has {text.count(MARKER)} times {MARKER!r}", "a pair has one image"
        )
    return text.replace(MARKER, "").strip()


def _made(caption: ScoredCaption) -> Made:
    return Made(caption["ratio"], caption["score"])
