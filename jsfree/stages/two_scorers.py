"""Scores pairs with two CLIP models on one device, for an inversion that both must agree on (``clip.second``).

SENTINEL (arXiv 2507.12455) finds that two detectors that must agree on a hallucination give fewer hallucinations after
training than either alone. ``stages.agreement`` has the rule, and what the gap of a pair is.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from jsfree.errors import RowError
from jsfree.schemas import HIGH, LOW, CaptionScores, Pair, StageOutput
from jsfree.stages.scoring import ClipScorer, PairScorer, score_images

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from jsfree.config import RunConfig


def pair_scorer(config: RunConfig, device: str = "cpu") -> PairScorer:
    """Load what scores the pairs of a run: one CLIP model, or two.

    Raises:
        ModelError: a model cannot be loaded.
    """
    return ClipScorer(config, device) if config.clip.second is None else TwoScorers(config, device)


class TwoScorers:
    """Two CLIP models on one device. A call scores a batch of pairs with both; each image is read once."""

    def __init__(self, config: RunConfig, device: str = "cpu") -> None:
        """Load both models of ``config.clip``.

        Raises:
            ModelError: a model cannot be loaded.
        """
        self._config = config
        self._scorers = [ClipScorer(config, device, model) for model in config.clip.scorers]
        self._readers = ThreadPoolExecutor(max(1, int(config.score.resources.cpus)))

    def __call__(self, pairs: Sequence[Pair]) -> StageOutput:
        """Score both captions of each pair: rows of ``schemas.scored_schema(..., scorers=2)``.

        Scores and ``gap`` are those of the first model, ``second_low`` and ``second_high`` hold those of the second,
        and a pair is ``inverted`` if the provisional winner scores strictly lower with both. Error rows are as those of
        ``ClipScorer``; ``tokens`` counts the text tokens of both.
        """
        return score_images(self, pairs, self._config.source, self._readers)

    def pixels(self, image: Image.Image) -> tuple[torch.Tensor, ...]:
        """Preprocess an image for each model, on the CPU. Thread-safe."""
        return tuple(scorer.pixels(image) for scorer in self._scorers)

    def embed(self, pixels: Sequence[tuple[torch.Tensor, ...]]) -> list[tuple[torch.Tensor, ...]]:
        """Encode preprocessed images by each model, as unit vectors on the CPU."""
        encoded = [scorer.embed([each[at] for each in pixels]) for at, scorer in enumerate(self._scorers)]
        return list(zip(*encoded, strict=True))

    def score(self, pairs: Sequence[Pair], images: Sequence[tuple[torch.Tensor, ...] | RowError]) -> StageOutput:
        """Score pairs as a call does, given the vectors of their images (from ``embed``) or errors."""
        first, second = self._scorers
        # Only verification reads the scores of further candidates, and it has one scorer.
        captions = [cast(Pair, {name: value for name, value in pair.items() if name != "candidates"}) for pair in pairs]
        return _joined(first.score(pairs, _part(images, 0)), second.score(captions, _part(images, 1)))


def _part(images: Sequence[tuple[torch.Tensor, ...] | RowError], at: int) -> list[torch.Tensor | RowError]:
    return [image if isinstance(image, RowError) else image[at] for image in images]


def _joined(first: StageOutput, second: StageOutput) -> StageOutput:
    """The rows that both models have scored; a pair that one of them cannot score has one error row."""
    opinions = {row["sample_id"]: row for row in second.rows}
    failed = {error["sample_id"] for error in first.errors}
    return StageOutput(
        rows=[_twice_scored(row, opinions[row["sample_id"]]) for row in first.rows if row["sample_id"] in opinions],
        errors=[*first.errors, *(error for error in second.errors if error["sample_id"] not in failed)],
        tokens=first.tokens + second.tokens,
    )


def _twice_scored(row: dict[str, Any], opinion: dict[str, Any]) -> dict[str, Any]:
    """A scored row with the second model's scores, inverted if both say so."""
    second_low, second_high = (
        CaptionScores(sentences=opinion[role]["sentences"], score=opinion[role]["score"]) for role in (LOW, HIGH)
    )
    inverted = row["inverted"] and opinion["inverted"]
    return {**row, "inverted": inverted, "second_low": second_low, "second_high": second_high}
