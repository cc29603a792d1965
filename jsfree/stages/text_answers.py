"""Stage classes for prompts without an image: answers of a captioner, and how likely another model finds them.

They show what training on captions did to the rest of the language model. Answers go through ``generate`` of
transformers, one at a time: there are few of them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import torch

from jsfree.config import RunConfig
from jsfree.schemas import CaptionRow, Sample, StageOutput
from jsfree.stages.captioning import captioner_of

_random_state = threading.Lock()


class TextAnswerWriter:
    """Answers of one model to prompts without an image; its rows are those of ``CaptionWriter``.

    An answer is drawn with a seed of its own, so it depends neither on the other ones nor on their order.
    """

    def __init__(self, config: RunConfig, model_ref: str, model: str, mode: str, device: str = "cpu") -> None:
        """Load the captioner ``model_ref``; ``mode`` is a key of ``evaluate.modes``, which sets the decoding."""
        self.config, self.model, self.mode = config, model, mode
        self.decoding = config.evaluate.modes[mode]
        self.captioner = captioner_of(config, model_ref, device)

    def __call__(self, samples: Sequence[Sample]) -> StageOutput:
        """Write a row of ``schemas.CAPTIONS`` for each sample; the images are not read. Thread-safe."""
        output = StageOutput()
        for sample in samples:
            written = self._answer(sample)
            output.tokens += len(written["token_ids"])
            output.rows.append({**sample, "model": self.model, "mode": self.mode, **written})
        return output

    @torch.inference_mode()
    def _answer(self, sample: Sample) -> dict[str, Any]:
        """Text, tokens and finish reason of one answer."""
        captioner, ids = self.captioner, self.captioner.prompt_ids(sample["prompt"], None)
        input_ids_BL = torch.tensor([ids], device=captioner.device)
        generate: Any = captioner.model.generate
        devices = [captioner.device] if captioner.device.type == "cuda" else []
        with _random_state, torch.random.fork_rng(devices):
            torch.manual_seed(_seed(self.config.seed, sample["sample_id"]))
            made_BL = generate(
                input_ids=input_ids_BL,
                attention_mask=torch.ones_like(input_ids_BL),
                max_new_tokens=self.decoding.max_new_tokens,
                suppress_tokens=list(captioner.suppressed_ids) or None,
                pad_token_id=captioner.processor.tokenizer.pad_token_id or min(captioner.eos_ids),
                **_sampling(self.decoding.temperature),
            )
        token_ids = made_BL[0, len(ids) :].tolist()
        ends = [number for number, token in enumerate(token_ids) if token in captioner.eos_ids]
        token_ids = token_ids[: ends[0] + 1] if ends else token_ids
        return {"text": captioner.text(token_ids), "token_ids": token_ids, "finish": "stop" if ends else "length"}


class TextLikelihoodScorer:
    """Log-probabilities of answers to prompts without an image, under another model than the one that wrote them."""

    def __init__(self, config: RunConfig, model_ref: str, device: str = "cpu") -> None:
        """Load the captioner ``model_ref``."""
        self.captioner = captioner_of(config, model_ref, device)

    def __call__(self, answers: Sequence[CaptionRow]) -> StageOutput:
        """Rows of ``schemas.LIKELIHOODS``: one list of log-probabilities, in nats, for the tokens of each answer."""
        output = StageOutput()
        for answer in answers:
            logps = self._logps(answer["prompt"], answer["token_ids"])
            output.rows.append({"sample_id": answer["sample_id"], "logps": [logps]})
            output.tokens += len(logps)
        return output

    @torch.inference_mode()
    def _logps(self, prompt: str, token_ids: Sequence[int]) -> list[float]:
        """Log-probability of each token after the prompt and the tokens before it."""
        if not token_ids:
            return []
        ids = self.captioner.prompt_ids(prompt, None)
        input_ids_BL = torch.tensor([[*ids, *token_ids]], device=self.captioner.device)
        logits_TV = self.captioner.model(input_ids=input_ids_BL, use_cache=False).logits[0, len(ids) - 1 : -1]
        logps_TV = torch.log_softmax(self.captioner.suppress(logits_TV.float()), -1)
        targets_T1 = torch.tensor(token_ids, device=logps_TV.device)[:, None]
        return [float(value) for value in logps_TV.gather(1, targets_T1)[:, 0]]


def _sampling(temperature: float) -> dict[str, Any]:
    """Arguments of ``generate``: draw from the whole distribution, or take the most likely token."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def _seed(seed: int, sample_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{sample_id}".encode()).digest()[:8]) >> 1
