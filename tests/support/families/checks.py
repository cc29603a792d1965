"""Differences of a family's decoding and training from transformers' full forward, which is the oracle."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from jsfree.config import Decoding, Views
from jsfree.decoding import algorithm1
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.dpo.batching import PairBatch, pack
from jsfree.dpo.policy import PairModel
from jsfree.models.families.base import TOWER, ImageInputs, split_features
from jsfree.models.loading import Captioner
from jsfree.models.saving import publish_captioner
from tests.support.families.templates import CHAT
from tests.support.families.tokenizer import END, PAD

PROMPT = "Describe the image."
SIZES = ((60, 40), (33, 70), (48, 48), (90, 30), (24, 64), (70, 60), (40, 41), (32, 96), (64, 32), (52, 75))
RATIOS = (0.0, 0.3, 1.0)
VIEWS = (Views(), Views(count=3, shift=3))
TOKENS = 5
ROLES = ("chosen", "rejected")
OF_TEXT = {PAD, END, *CHAT, "<s>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<end_of_utterance>"}
"""Special tokens that do not stand for images or videos."""


def picture(number: int) -> Image.Image:
    """An image of random blocks; sizes repeat after ``SIZES``."""
    width, height = SIZES[number % len(SIZES)]
    levels = np.random.default_rng(number).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Agreement:
    """Captions of the engine that are those of Algorithm 1."""

    identical: int
    captions: int
    distinct: int
    """Different captions of Algorithm 1: where there are few, faults may not change any."""


def engine_agreement(captioner: Captioner, images: int = 10) -> Agreement:
    """Decode six captions of each image in fewer slots than there are captions."""
    inputs = [captioner.inputs(picture(number)) for number in range(images)]
    requests = [
        Request(
            f"{number}/{ratio}/{views.count}",
            inputs[number],
            PROMPT,
            ratio,
            noise_key(0, 1, str(number), f"{ratio}"),
            Decoding(max_new_tokens=TOKENS, views=views, temperature=0 if number % 4 == 3 else 1),
        )
        for number, ratio, views in product(range(images), RATIOS, VIEWS)
    ]
    literal = [algorithm1.decode(captioner, request) for request in requests]
    own = Captioner(copy.deepcopy(captioner.model), captioner.processor)  # the oracle's attention stays transformers'
    decoded = DualPathEngine(own, Workload(7, views=3, captions_per_image=3)).decode(requests)
    identical = sum(one == other for one, other in zip(decoded, literal, strict=True))
    return Agreement(identical, len(literal), len({caption.token_ids for caption in literal}))


@dataclass(frozen=True)
class Packing:
    """Largest differences of packed rows from separate forwards, and of cached features from pixels."""

    sums: float
    gradients: float
    """Relative, of any trained parameter."""
    cached: float
    """Of log-probabilities, with the vision tower's features instead of pixels."""
    trained_projector: bool
    """Whether the projector has gradients."""


def packing(captioner: Captioner) -> Packing:
    """Compare three pairs of captions of images of different sizes."""
    family, model = captioner.family, captioner.model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(family.part_of(name) != TOWER)
    images = [captioner.inputs(picture(number)) for number in range(3)]
    words = torch.randint(0, 300, (3, 2, 9), generator=torch.Generator().manual_seed(1)).tolist()
    captions = [{"chosen": words[row][0][: 5 + row], "rejected": words[row][1][: 9 - row]} for row in range(3)]
    expected = [
        _apart(captioner, image, of[role]) for role in ROLES for image, of in zip(images, captions, strict=True)
    ]
    wanted = _gradients(model, expected)
    pairs = PairModel(model)
    found = _flat(pairs(_packed(captioner, images, captions)))
    gradients = _gradients(model, found)
    features = split_features(pairs.vision_features(captioner.batch(images)), images)
    with torch.no_grad():
        cached = _flat(pairs(_packed(captioner, features, captions)))
    apart = float("inf")
    if gradients.keys() == wanted.keys():
        apart = max(float((gradients[name] - each).norm() / each.norm()) for name, each in wanted.items())
    return Packing(
        _distance(found, expected),
        apart,
        _distance(cached, found),
        any(family.part_of(name) == "projector" for name in gradients),
    )


def vision_ids(captioner: Captioner) -> set[int]:
    """Ids of all special tokens of a tokenizer but those of text and conversations."""
    added = captioner.processor.tokenizer.added_tokens_decoder
    return {number for number, token in added.items() if token.special and token.content not in OF_TEXT}


def _distance(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    return max(float((one - other).detach().abs()) for one, other in zip(found, expected, strict=True))


def _apart(captioner: Captioner, image: ImageInputs, tokens: Sequence[int]) -> torch.Tensor:
    """Summed log-probability of a caption by one forward of its own."""
    model: Any = captioner.model
    prompt = captioner.prompt_ids(PROMPT, image)
    ids = [*prompt, *tokens]
    logits = model(input_ids=torch.tensor([ids]), use_cache=False, **captioner.forward_arguments(ids, [image])).logits
    logps = torch.log_softmax(logits[0, len(prompt) - 1 : -1], -1)
    return logps[range(len(tokens)), list(tokens)].sum()


def _packed(captioner: Captioner, images: Sequence[ImageInputs], captions: Any) -> PairBatch:
    prompts = [captioner.prompt(PROMPT, image) for image in images]
    return pack(prompts, captions, images).to(captioner.device, captioner.model.dtype)


def _flat(sums: Any) -> list[torch.Tensor]:
    return [each for role in ROLES for each in sums[role]]


def _gradients(model: Any, sums: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of a weighted sum of log-probabilities, where they are not zero."""
    model.zero_grad()
    torch.autograd.backward([(number + 1) / len(sums) * each for number, each in enumerate(sums)])
    named = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad.clone() for name, grad in named.items() if grad is not None and float(grad.norm())}


@dataclass(frozen=True)
class Prompts:
    """Whether the prompts are those that transformers makes of the chat template."""

    without_image: bool
    with_image: bool
    logits: float
    """Largest difference between logits for our arguments and for the processor's own."""


def prompts(captioner: Captioner) -> Prompts:
    """Compare prompts and inputs with those of the processor, for images of different sizes."""
    processor: Any = captioner.processor
    options = dict(captioner.family.image_options)
    text = {"type": "text", "text": PROMPT}
    kwargs = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    plain = processor.apply_chat_template([{"role": "user", "content": [text]}], **kwargs)
    with_image, apart = True, 0.0
    for number in range(3):
        image = captioner.inputs(picture(number))
        content = [{"type": "image", "image": picture(number)}, text]
        own = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            **kwargs,
            return_tensors="pt",
            processor_kwargs={"images_kwargs": options},
        )
        ids = captioner.prompt_ids(PROMPT, image)
        with_image &= ids == own["input_ids"][0].tolist()
        apart = max(apart, _logit_distance(captioner, ids, image, own))
    return Prompts(captioner.prompt_ids(PROMPT, None) == plain["input_ids"][0], with_image, apart)


@torch.no_grad()
def _logit_distance(captioner: Captioner, ids: list[int], image: ImageInputs, own: Any) -> float:
    model: Any = captioner.model
    ours = model(input_ids=torch.tensor([ids]), **captioner.forward_arguments(ids, [image])).logits
    names = (*captioner.family.image_arguments, "token_type_ids", "mm_token_type_ids", "input_ids", "attention_mask")
    theirs = model(**{name: own[name] for name in names if name in own}).logits
    return float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")


@torch.no_grad()
def reloaded(captioner: Captioner, folder: Path) -> float:
    """Largest difference of logits after publishing and loading with transformers' automatic classes."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    publish_captioner(captioner.model, captioner.processor, folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    again = Captioner(model.eval(), AutoProcessor.from_pretrained(folder))
    found = []
    for each in (captioner, again):
        image = each.inputs(picture(1))
        ids = each.prompt_ids(PROMPT, image)
        logits = each.model(input_ids=torch.tensor([ids]), **each.forward_arguments(ids, [image])).logits
        found.append(logits)
    return float((found[0] - found[1]).abs().max())
