"""CLIP scores of the sentences of captions, for comparisons."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from jsfree.config import RunConfig
from jsfree.errors import JsfreeError
from jsfree.schemas import ImageRef
from jsfree.stages.scoring import ClipScorer, image_key
from serve.http.protocol import ScoredSentence
from serve.http.security import decoded_image

log = logging.getLogger(__name__)


class SentenceScorer:
    """The run's CLIP model, loaded when the first comparison arrives."""

    def __init__(self, config: RunConfig, device: str = "cpu") -> None:
        self._config, self._device = config, device
        self._thread = ThreadPoolExecutor(1, "clip")

    async def score(self, image: bytes, captions: Sequence[str]) -> list[list[ScoredSentence]] | None:
        """The sentences of each caption with their cosines with the image; None if the model cannot be used."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, image, captions)
        except JsfreeError as error:
            log.error("sentences are not scored: %s", error)
            return None

    @cached_property
    def _clip(self) -> ClipScorer:
        return ClipScorer(self._config, self._device)

    def _score(self, content: bytes, captions: Sequence[str]) -> list[list[ScoredSentence]]:
        with decoded_image(content, self._config.serve) as image:
            (embedded,) = self._clip.embed([self._clip.pixels(image)])
        reference: ImageRef = {"id": "sent", "uri": None, "bytes": content, "sha256": None}
        rows: Any = [{"image": reference, "text": caption} for caption in captions]
        scored = self._clip.score_captions(rows, {image_key(reference): embedded}).rows
        return [[ScoredSentence(each["text"], each["score"]) for each in row["sentences"]] for row in scored]
