"""Stage classes that generate and score captions in one pass, so that each image is decoded once.

CLIP is on the captioner's device and embeds images while captions are decoded. Rows and scores equal those of
captioning and scoring one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from jsfree.schemas import CaptionRow, Pair, Sample, StageOutput
from jsfree.stages.captioning import CaptionWriter, PairGenerator
from jsfree.stages.scoring import IMAGES_AT_ONCE, ClipScorer, PairScorer, image_key
from jsfree.stages.two_scorers import pair_scorer

if TYPE_CHECKING:
    from PIL import Image

    from jsfree.config import RunConfig


class ScoredPairGenerator:
    """Two captions per image, and their scores as ``second_stage``."""

    def __init__(
        self,
        config: RunConfig,
        model_ref: str,
        round_number: int,
        device: str = "cpu",
        evaluation_hashes: str | None = None,
    ) -> None:
        """Load CLIP and the captioner; arguments as ``PairGenerator``."""
        # CLIP first, because the KV cache uses the remaining memory.
        self._scorer = pair_scorer(config, device)
        self._generator = PairGenerator(config, model_ref, round_number, device, evaluation_hashes)

    def __call__(self, samples: Sequence[Sample]) -> StageOutput:
        """Generate rows of ``schemas.PAIRS``, and rows of ``schemas.SCORED`` as ``second_stage``."""
        embedding = _ImageEmbedder(self._scorer)
        output = self._generator(samples, embedding)
        started = time.perf_counter()
        images = embedding.all()
        pairs = cast(list[Pair], output.rows)
        output.second_stage = self._scorer.score(pairs, [images[pair["sample_id"]] for pair in pairs])
        output.second_stage_seconds = embedding.seconds + time.perf_counter() - started
        return output


class ScoredCaptionWriter:
    """Captions of one model for evaluation, and their scores as ``second_stage``."""

    def __init__(self, config: RunConfig, model_ref: str, model: str, mode: str, device: str = "cpu") -> None:
        """Load CLIP and the captioner; arguments as ``CaptionWriter``."""
        self._scorer = ClipScorer(config, device)
        self._writer = CaptionWriter(config, model_ref, model, mode, device)

    def __call__(self, samples: Sequence[Sample]) -> StageOutput:
        """Generate rows of ``schemas.CAPTIONS``, and rows of ``schemas.SCORED_CAPTIONS`` as ``second_stage``."""
        embedding = _ImageEmbedder(self._scorer)
        output = self._writer(samples, embedding)
        started = time.perf_counter()
        images = embedding.all()
        rows = cast(list[CaptionRow], output.rows)
        embedded = {image_key(row["image"]): images[row["sample_id"]] for row in rows}
        output.second_stage = self._scorer.score_captions(rows, embedded)
        output.second_stage_seconds = embedding.seconds + time.perf_counter() - started
        return output


class _ImageEmbedder:
    """Embeds images as they are read, in batches of the same size as ``ClipScorer``.

    What the pixels and the vector of an image are depends on the scorer.
    """

    def __init__(self, scorer: PairScorer) -> None:
        self._scorer = scorer
        self._waiting: dict[str, Any] = {}
        self._embedded: dict[str, Any] = {}
        self.seconds = 0.0

    def pixels(self, image: Image.Image) -> Any:
        """Preprocess an image for CLIP."""
        return self._scorer.pixels(image)

    def receive(self, sample_id: str, pixels: Any) -> None:
        """Add an image to the batch, and embed the batch if it is full."""
        self._waiting[sample_id] = pixels
        if len(self._waiting) == IMAGES_AT_ONCE:
            started = time.perf_counter()
            self._embed()
            self.seconds += time.perf_counter() - started

    def all(self) -> dict[str, Any]:
        """Return the vectors of all images by sample id."""
        self._embed()
        return self._embedded

    def _embed(self) -> None:
        vectors = self._scorer.embed(list(self._waiting.values()))
        self._embedded.update(zip(self._waiting, vectors, strict=True))
        self._waiting.clear()
