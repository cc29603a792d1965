"""Pairs of captions to train on, and a LLaVA with random weights and MiniWorld's tokenizer."""

from __future__ import annotations

import io
import random
from pathlib import Path

import torch
from PIL import Image
from random_llava import RandomCaptioner

from jsfree.config import Source
from jsfree.dpo.batching import PairBatch, collate
from jsfree.miniworld import world
from jsfree.models.loading import Captioner, load_captioner
from jsfree.models.saving import publish_captioner
from jsfree.schemas import SelectedPair

PROMPT = "Describe this image in detail."


def tiny(folder: Path, patches: int, vocabulary: int) -> Captioner:
    """Publish and load a LLaVA of about 6M parameters, plus embeddings, with MiniWorld's tokenizer."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    shipped = load_captioner("miniworld:captioner")
    processor, known = shipped.processor, shipped.model.config
    side = 8 * patches
    processor.patch_size = 8
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        image_size=side, patch_size=8, projection_dim=96,
    )  # fmt: skip
    language = LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8, vocab_size=vocabulary,
        max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=language, image_token_index=known.image_token_index,
            image_seq_length=patches**2, vision_feature_layer=-2, vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    publish_captioner(model, processor, folder)
    return load_captioner(str(folder))


def drawn_pairs(folder: Path, count: int, captioner: Captioner) -> tuple[list[SelectedPair], list[Image.Image]]:
    """Pairs with image files and captions of 36 to 56 tokens, and their images."""
    folder.mkdir(parents=True)
    pairs, images = [], []
    for number in range(count):
        scene = world.scene("unlabelled", number)
        (folder / f"{number}.png").write_bytes(world.png_bytes(scene))
        images.append(Image.open(io.BytesIO(world.png_bytes(scene))).convert("RGB"))
        words = random.Random(number)
        captions = [_caption(captioner, number + offset, words.randint(36, 56)) for offset in (0, 1_000)]
        pairs.append(
            {
                "sample_id": f"pair-{number:05d}",
                "prompt": " ".join([PROMPT] * 3),
                "image": {
                    "id": str(number),
                    "uri": f"{folder}/{number}.png",
                    "bytes": None,
                    "sha256": f"{number:064d}",
                },
                "chosen": {"token_ids": captions[0]},
                "rejected": {"token_ids": captions[1]},
            }
        )
    return pairs, images


def _caption(captioner: Captioner, number: int, tokens: int) -> list[int]:
    text = " ".join(world.true_caption(world.scene("unlabelled", number + offset)) for offset in range(4))
    ids = captioner.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids[: tokens - 1], 2]


def random_batch(captioner: RandomCaptioner, count: int, tokens: int) -> PairBatch:
    """A batch of random images with random captions of ``tokens`` tokens, give or take a sixth."""
    words, spread = random.Random(0), tokens // 6
    captions = [
        [words.randrange(10, captioner.vocabulary) for _ in range(words.randint(tokens - spread, tokens + spread))]
        for _ in range(2 * count)
    ]
    pairs: list[SelectedPair] = [
        {
            "sample_id": str(at),
            "prompt": "",
            "chosen": {"token_ids": captions[2 * at]},  # type: ignore[typeddict-item]
            "rejected": {"token_ids": captions[2 * at + 1]},  # type: ignore[typeddict-item]
        }
        for at in range(count)
    ]
    return collate(pairs, captioner, Source(), captioner.random_images(count))
