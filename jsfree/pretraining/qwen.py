"""MiniWorld's Qwen3-VL: native resolution, M-RoPE and DeepStack (arXiv 2511.21631) with 1.7 million parameters.

There is no pre-trained tower of its kind to copy. It learns the dense loss of ``clip.py`` first: the object that each
patch shows, its colour and its position. Then it is frozen, and the captioner is trained on its features.

Shape suffixes: B images, G patches of an image, D width, K attributes (object, colour, position).
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from jsfree.errors import ModelError
from jsfree.miniworld import world
from jsfree.models.families.base import PIXELS, TOWER
from jsfree.models.families.qwen_vl import GRID
from jsfree.models.loading import Captioner
from jsfree.pretraining.clip import PIXEL_MEAN, PIXEL_STD, DenseHeads
from jsfree.pretraining.languages import PLAIN, Language
from jsfree.pretraining.optimisation import Optimiser, Progress, batches
from jsfree.pretraining.tables import SceneTable
from jsfree.pretraining.tokenizers import QWEN_TEMPLATE, QWEN_VISION, qwen_tokenizer

if TYPE_CHECKING:
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

PATCH, MERGE, FRAMES = 8, 2, 2
"""Pixels of a patch's side, patches of a token's side, and frames of a patch, which repeat an image."""
WIDTH = 96
SMALLEST, LARGEST = 32, 128
"""Sides of the squares whose areas limit the resolution, in pixels."""
MATRIX_RATE, OTHER_RATE = 0.02, 2e-3
INITIALIZER_RANGE = 0.08


def build_processor(language: Language = PLAIN) -> "Qwen3VLProcessor":
    """Qwen3-VL's processor for images of 4 to 64 tokens; MiniWorld's have 16."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    grid = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": FRAMES}
    image_processor = Qwen2VLImageProcessor(
        **grid,
        size={"shortest_edge": SMALLEST**2, "longest_edge": LARGEST**2},
        image_mean=list(PIXEL_MEAN),
        image_std=list(PIXEL_STD),
    )
    return Qwen3VLProcessor(
        image_processor, qwen_tokenizer(language), Qwen3VLVideoProcessor(**grid), chat_template=QWEN_TEMPLATE
    )


def build_captioner(processor: "Qwen3VLProcessor") -> "Qwen3VLForConditionalGeneration":
    """A newly initialised Qwen3-VL; heads of 32 for vLLM's CPU attention."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = processor.tokenizer
    vision = {
        "depth": 4,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "out_hidden_size": 128,
        "num_heads": WIDTH // 32,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES,
        "num_position_embeddings": (world.SIZE // PATCH) ** 2,
        "deepstack_visual_indexes": [1, 2],
        "initializer_range": INITIALIZER_RANGE,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "initializer_range": INITIALIZER_RANGE,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in QWEN_VISION.items()}
    config = Qwen3VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=True, **ids)
    model = Qwen3VLForConditionalGeneration(config)
    for name in ("eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    return model


def patch_targets(patches: NDArray[np.int64]) -> torch.Tensor:
    """Contents of patches (B, K, side, side) in the tower's order, (B, K, G): by merged tokens, row by row in each."""
    count, kinds, side, _ = patches.shape
    blocks = patches.reshape(count, kinds, side // MERGE, MERGE, side // MERGE, MERGE)
    return torch.from_numpy(blocks.transpose(0, 1, 2, 4, 3, 5).reshape(count, kinds, side * side))


def train_tower(
    captioner: Captioner, scenes: SceneTable, steps: int, batch: int, seed: int = 0, progress: Progress | None = None
) -> None:
    """Train the vision tower in place on the contents of its patches.

    Args:
        scenes: with patches of ``PATCH`` pixels.

    Raises:
        ModelError: the processor cuts the images into another number of patches than the table.
    """
    tower, processor = captioner.model.model.visual, captioner.processor.image_processor
    heads = DenseHeads(WIDTH)
    own = ((name, each) for name, each in captioner.model.named_parameters() if captioner.family.part_of(name) == TOWER)
    optimiser = Optimiser([*own, *heads.named_parameters(prefix="heads")], steps, MATRIX_RATE, OTHER_RATE)
    patches = scenes.patches.shape[-1] ** 2
    for step, rows in zip(range(steps), batches(len(scenes), batch, np.random.default_rng(seed)), strict=False):
        images = processor(images=list(torch.from_numpy(scenes.pixels[rows])), return_tensors="pt")
        if len(images[PIXELS]) != len(rows) * patches:
            raise ModelError(
                f"{len(images[PIXELS])} patches of {len(rows)} images, which have {patches} each",
                "build the table of scenes for patches of the processor's size",
            )
        hidden_BGD = tower(images[PIXELS], images[GRID]).last_hidden_state.view(len(rows), patches, WIDTH)
        loss = heads.loss(hidden_BGD, patch_targets(scenes.patches[rows]))
        optimiser.step(loss)
        if progress is not None:
            progress("tower", step + 1, steps, loss.item())
