"""Stage classes that caption images: pairs for training, captions for evaluation.

Plain classes without Ray: the model is loaded in ``__init__``, a batch of samples is one call. The same
object works in a loop, in a Ray Data actor and in a test.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

from PIL import Image

from jsfree import schemas
from jsfree.config import Decoding, RunConfig, Source
from jsfree.decoding.engine import DualPathDecoder
from jsfree.decoding.requests import Caption, Request
from jsfree.decoding.sampling import noise_key
from jsfree.errors import RowError
from jsfree.images import load_image
from jsfree.models import load_captioner
from jsfree.ratios import draw_ratios
from jsfree.schemas import ImageRef, Sample, StageOutput

log = logging.getLogger(__name__)


class Captioning:
    """A captioner with its decoder and guarded image loading, shared by the stage classes below."""

    def __init__(self, config: RunConfig, model_ref: str, device: str) -> None:
        settings = config.captioner
        self.config = config
        self.captioner = load_captioner(
            model_ref, device, settings.dtype, settings.preprocessing, settings.device_map, config.models
        )
        self.decoder = DualPathDecoder(self.captioner, config.generate.batch_size, config.generate.mixing)

    def load(
        self, samples: Sequence[Sample], limits: Source, stage: str
    ) -> tuple[list[tuple[Sample, Image.Image]], StageOutput]:
        """Load the samples' images; what cannot be loaded becomes an error row of the returned output."""
        output = StageOutput()
        loaded: list[tuple[Sample, Image.Image]] = []
        for sample in samples:
            try:
                image, sha256 = load_image(sample["image"], limits)
            except RowError as error:
                output.errors.append(error_row(sample["sample_id"], stage, error))
                continue
            known = cast(ImageRef, {**sample["image"], "sha256": sha256})
            loaded.append((cast(Sample, {**sample, "image": known}), image))
        return loaded, output


class PairGenerator(Captioning):
    """Stage 1: two captions an image by dual-path decoding (paper, section 3.2 and Algorithm 1, lines 3-8)."""

    def __init__(self, config: RunConfig, model_ref: str, round_number: int, device: str = "cpu") -> None:
        super().__init__(config, model_ref, device)
        self.round_number = round_number

    def __call__(self, samples: Sequence[Sample]) -> StageOutput:
        """Rows of ``schemas.PAIRS``, one a sample whose image loads."""
        loaded, output = self.load(samples, self.config.source, "pairs")
        ratios = [self._ratios(sample) for sample, _ in loaded]
        requests = [
            self._request(sample, image, role, ratio)
            for (sample, image), pair in zip(loaded, ratios, strict=True)
            for role, ratio in zip((schemas.LOW, schemas.HIGH), pair, strict=True)
        ]
        captions = self.decoder.decode(requests)
        for (sample, _), pair, low, high in zip(loaded, ratios, captions[::2], captions[1::2], strict=True):
            output.tokens += len(low.token_ids) + len(high.token_ids)
            output.rows.append(
                {**sample, "low": _decoded(low, pair[0]), "high": _decoded(high, pair[1]), "seed": self.config.seed}
            )
        return output

    def _ratios(self, sample: Sample) -> tuple[float, float]:
        return draw_ratios(self.config.generate.ratios, self.config.seed, self.round_number, sample["sample_id"])

    def _request(self, sample: Sample, image: Image.Image, role: str, ratio: float) -> Request:
        key = noise_key(self.config.seed, self.round_number, sample["sample_id"], role)
        decoding = self.config.generate.decoding
        return Request(f"{sample['sample_id']}/{role}", image, sample["prompt"], ratio, key, decoding)


class CaptionWriter(Captioning):
    """Captions of one model for evaluation, decoded with the image alone (h = 0)."""

    def __init__(self, config: RunConfig, model_ref: str, model: str, mode: str, device: str = "cpu") -> None:
        super().__init__(config, model_ref, device)
        self.model = model
        self.mode = mode
        self.decoding: Decoding = config.evaluate.modes[mode]

    def __call__(self, samples: Sequence[Sample]) -> StageOutput:
        """Rows of ``schemas.CAPTIONS``, one a sample whose image loads.

        The noise does not depend on the model, so that captions before and after are compared on one stream.
        """
        loaded, output = self.load(samples, self.config.evaluate.source, "captions")
        requests = [
            Request(
                sample["sample_id"],
                image,
                sample["prompt"],
                0.0,
                noise_key(self.config.seed, 0, sample["sample_id"], self.mode),
                self.decoding,
            )
            for sample, image in loaded
        ]
        for (sample, _), caption in zip(loaded, self.decoder.decode(requests), strict=True):
            output.tokens += len(caption.token_ids)
            written = {"text": caption.text, "token_ids": list(caption.token_ids), "finish": caption.finish}
            output.rows.append({**sample, "model": self.model, "mode": self.mode, **written})
        return output


def error_row(sample_id: str, stage: str, error: RowError) -> schemas.ErrorRow:
    """The row of ``errors/`` for a sample that failed."""
    log.warning("%s: %s: %s", stage, sample_id, error)
    return {"sample_id": sample_id, "stage": stage, "kind": error.kind, "message": str(error)}


def _decoded(caption: Caption, ratio: float) -> schemas.Decoded:
    return {"ratio": ratio, "text": caption.text, "token_ids": list(caption.token_ids), "finish": caption.finish}
