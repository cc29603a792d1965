"""Captions by beam search, for benchmarks whose protocol prescribes it.

The project's engine samples one token at a time for many captions; beam search goes through ``generate`` of
transformers, one path and one view of the image, one image at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from jsfree.config import RunConfig
from jsfree.models.families.base import ImageInputs
from jsfree.schemas import Sample, StageOutput
from jsfree.stages.captioning import ImageObserver, ImageReader, captioner_of


class BeamCaptionWriter:
    """Captions of one model for evaluation by beam search; its rows are those of ``CaptionWriter``."""

    def __init__(
        self, config: RunConfig, model_ref: str, model: str, mode: str, beams: int, device: str = "cpu"
    ) -> None:
        """Load the captioner ``model_ref``.

        Args:
            mode: key of ``evaluate.modes``, whose ``max_new_tokens`` limits captions.
            beams: number of beams; temperature and views of the mode are not used.
        """
        self.config = config
        self.model = model
        self.mode = mode
        self.beams = beams
        self.captioner = captioner_of(config, model_ref, device)
        self._reader = ImageReader(self.captioner, config.generate.resources.cpus)
        self._generating = threading.Lock()

    def __call__(self, samples: Sequence[Sample], observer: ImageObserver | None = None) -> StageOutput:
        """Generate a row of ``schemas.CAPTIONS`` for each sample whose image can be read. Thread-safe."""
        output = StageOutput()
        for sample, image in self._reader.read(samples, self.config.evaluate.source, "captions", output, observer):
            with self._generating:
                written = self._caption(sample["prompt"], image)
            output.tokens += len(written["token_ids"])
            output.rows.append({**sample, "model": self.model, "mode": self.mode, **written})
        return output

    @torch.inference_mode()
    def _caption(self, prompt: str, image: ImageInputs) -> dict[str, Any]:
        """Text, tokens and finish reason of one caption."""
        captioner, ids = self.captioner, self.captioner.prompt_ids(prompt, image)
        input_ids_BL = torch.tensor([ids], device=captioner.device)
        generate: Any = captioner.model.generate
        made_BL = generate(
            input_ids=input_ids_BL,
            attention_mask=torch.ones_like(input_ids_BL),
            do_sample=False,
            num_beams=self.beams,
            max_new_tokens=self.config.evaluate.modes[self.mode].max_new_tokens,
            suppress_tokens=list(captioner.suppressed_ids) or None,
            pad_token_id=captioner.processor.tokenizer.pad_token_id or min(captioner.eos_ids),
            **captioner.forward_arguments(ids, [image]),
        )
        token_ids = made_BL[0, len(ids) :].tolist()
        ends = [number for number, token in enumerate(token_ids) if token in captioner.eos_ids]
        token_ids = token_ids[: ends[0] + 1] if ends else token_ids
        return {
            "text": captioner.text(token_ids),
            "token_ids": token_ids,
            "finish": "stop" if ends else "length",
        }
