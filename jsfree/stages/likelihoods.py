"""Stage class that computes log-probabilities of stored captions under another model than the one that wrote them.

In later rounds, sentences are verified by their likelihood under m0, because that of an improved model no longer tells
true sentences from those that it was trained on. All candidates of an image follow one shared prefix in one row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from jsfree.config import RunConfig
from jsfree.decoding.views import views_of
from jsfree.dpo.batching import PairBatch, pack
from jsfree.dpo.policy import PairModel
from jsfree.models.families.base import ImageInputs, join_images
from jsfree.models.loading import DTYPES
from jsfree.schemas import PairWithCandidates, Role, StageOutput
from jsfree.stages.captioning import ImageReader, captioner_of

IMAGES_AT_ONCE = 8
"""Images, with all their candidates, in one forward pass."""


class LikelihoodScorer:
    """Log p_c of every token of the candidates of pairs, under one captioner, over the views they were decoded with."""

    def __init__(self, config: RunConfig, model_ref: str, device: str = "cpu") -> None:
        """Load the captioner ``model_ref``."""
        self._config = config
        self._captioner = captioner_of(config, model_ref, device)
        self._reader = ImageReader(self._captioner, config.score.resources.cpus)
        self._model = PairModel(self._captioner.model)
        head = self._captioner.model.lm_head
        suppressed_V = torch.zeros(self._captioner.vocabulary, dtype=head.weight.dtype, device=head.weight.device)
        suppressed_V[list(self._captioner.suppressed_ids)] = -torch.inf
        head.bias = torch.nn.Parameter(suppressed_V if head.bias is None else head.bias + suppressed_V)

    def __call__(self, pairs: Sequence[PairWithCandidates]) -> StageOutput:
        """Rows of ``schemas.LIKELIHOODS``: log-probabilities of each candidate's tokens, in the order of candidates.

        A pair becomes an error row if its image cannot be used. ``tokens`` counts the tokens of the candidates.
        """
        output = StageOutput()
        read = list(self._reader.read(pairs, self._config.source, "likelihoods", output))
        by_id = {pair["sample_id"]: pair for pair in pairs}
        for start in range(0, len(read), IMAGES_AT_ONCE):
            part = read[start : start + IMAGES_AT_ONCE]
            of_part = [by_id[sample["sample_id"]] for sample, _ in part]
            for pair, logps in zip(of_part, self._logps(of_part, [image for _, image in part]), strict=True):
                output.rows.append({"sample_id": pair["sample_id"], "logps": logps})
                output.tokens += sum(map(len, logps))
        return output

    @torch.inference_mode()
    def _logps(self, pairs: Sequence[PairWithCandidates], images: Sequence[ImageInputs]) -> list[list[list[float]]]:
        """Log-probabilities of the tokens of each candidate of each pair."""
        captions = [{each["role"]: each["token_ids"] for each in pair["candidates"]} for pair in pairs]
        prompts = [self._captioner.prompt(pair["prompt"], image) for pair, image in zip(pairs, images, strict=True)]
        batch = pack(prompts, captions)
        views = [views_of(self._captioner, image, self._config.generate.decoding.views) for image in images]
        of_views = [
            self._token_logps(replace(batch, images=join_images(each_view))) for each_view in zip(*views, strict=True)
        ]
        logps_T = torch.stack(of_views).logsumexp(0) - math.log(len(of_views))
        lengths = [length for of_role in batch.lengths.values() for length in of_role]
        by_role = iter([part.tolist() for part in torch.split(logps_T, lengths)])
        found: list[dict[Role, list[float]]] = [{} for _ in pairs]
        for role in batch.lengths:
            for row, of_row in zip(found, captions, strict=True):
                if role in of_row:
                    row[role] = next(by_role)
        return [[row[role] for role in of_row] for row, of_row in zip(found, captions, strict=True)]

    def _token_logps(self, batch: PairBatch) -> torch.Tensor:
        return self._model.token_logps(batch.to(self._captioner.device, DTYPES[self._config.captioner.dtype])).cpu()
