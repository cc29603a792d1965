"""Pre-training of MiniWorld's captioner: a ``LlavaForConditionalGeneration`` on CLIP's frozen vision tower.

The projector and the language model learn from noisy captions (``world.noisy_caption``), which give the seed m0 the
language prior that makes it hallucinate, and from questions with short, noisy answers (``questions.noisy_answer``).
Some rows have no image, like the text-only rows of LLaVA's training data; their prompt is that of the method's
unconditional path.

Shape suffixes: N scenes, B rows, L positions, V vocabulary, D width.
"""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from jsfree.errors import ModelError
from jsfree.miniworld import questions as questions_about
from jsfree.miniworld import world
from jsfree.miniworld.world import CaptionNoise, Scene
from jsfree.models.loading import Captioner
from jsfree.pretraining.clip import (
    PATCH,
    PIXEL_MEAN,
    PIXEL_STD,
    READ_LAYER,
    pixel_values,
)
from jsfree.pretraining.languages import PLAIN, Language
from jsfree.pretraining.optimisation import Optimiser, Progress, batches
from jsfree.pretraining.tokenizers import CHAT_TEMPLATE, IMAGE_TOKEN, captioner_tokenizer

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

PATCHES = (world.SIZE // PATCH) ** 2
MATRIX_RATE, OTHER_RATE = 0.02, 3e-3
TEXT_ONLY_SHARE = 0.125
QUESTIONS_PER_SCENE = 0.5
QUESTION_WEIGHT = 0.3
"""Weight of the mean loss per answer token, relative to that of captions."""
IGNORED = -100
# open_clip's name -> transformers' name, inside one residual block.
BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def build_processor(language: Language = PLAIN) -> "LlavaProcessor":
    """LLaVA's processor for images of 64 x 64 pixels."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    image_processor = CLIPImageProcessor(
        size={"shortest_edge": world.SIZE},
        crop_size={"height": world.SIZE, "width": world.SIZE},
        image_mean=list(PIXEL_MEAN),
        image_std=list(PIXEL_STD),
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=captioner_tokenizer(language),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )


def build_captioner(clip: Any, language: Language = PLAIN) -> "LlavaForConditionalGeneration":
    """A LLaVA with newly initialised projector and language model on a frozen copy of ``clip``'s vision tower.

    vLLM's CPU attention supports head size 32. The default ``initializer_range`` of 0.02 is too small at this width.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    visual, tokenizer = clip.visual, captioner_tokenizer(language)
    blocks = visual.transformer.resblocks
    vision = CLIPVisionConfig(
        hidden_size=visual.conv1.out_channels,
        intermediate_size=blocks[0].mlp.c_fc.out_features,
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        image_size=world.SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
        projection_dim=visual.proj.shape[1],
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.08,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=READ_LAYER,
        image_seq_length=PATCHES,
    )
    model = LlavaForConditionalGeneration(config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    copy_vision_tower(visual, model.model.vision_tower)
    return model


def copy_vision_tower(visual: Any, tower: nn.Module) -> None:
    """Copy the weights of open_clip's ``visual`` into ``tower`` (CLIPVisionModel) and freeze it.

    Raises:
        ModelError: the outputs of the two differ by more than rounding.
    """
    weights = vision_weights(visual)
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tower.state_dict()) else ""
    tower.load_state_dict({prefix + name: tensor.clone() for name, tensor in weights.items()})
    tower.requires_grad_(False).eval()
    outputs: list[torch.Tensor] = []
    handle = visual.transformer.resblocks[READ_LAYER].register_forward_hook(lambda *call: outputs.append(call[2]))
    probe = torch.rand(2, 3, world.SIZE, world.SIZE) * 2 - 1
    with torch.no_grad():
        visual.eval()(probe)
        handle.remove()
        hidden = tower(probe, output_hidden_states=True).hidden_states[READ_LAYER]
    difference = float((hidden - outputs[0]).abs().max())
    if difference > 1e-4:
        raise ModelError(
            f"the copied vision tower differs from CLIP's by {difference:.1e}",
            "check BLOCK_NAMES against the versions of open_clip and transformers",
        )


def vision_weights(visual: Any) -> dict[str, torch.Tensor]:
    """Weights of open_clip's vision transformer under the names of transformers' CLIPVisionModel."""
    source = visual.state_dict()
    weights = {
        "embeddings.class_embedding": source["class_embedding"],
        "embeddings.position_embedding.weight": source["positional_embedding"],
        "embeddings.patch_embedding.weight": source["conv1.weight"],
    }
    for kind in ("weight", "bias"):
        weights[f"pre_layrnorm.{kind}"] = source[f"ln_pre.{kind}"]
        weights[f"post_layernorm.{kind}"] = source[f"ln_post.{kind}"]
        for layer in range(len(visual.transformer.resblocks)):
            block, target = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            for open_clip_name, name in BLOCK_NAMES.items():
                weights[f"{target}.{name}.{kind}"] = source[f"{block}.{open_clip_name}.{kind}"]
            parts = source[f"{block}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip("qkv", parts, strict=True):
                weights[f"{target}.self_attn.{name}_proj.{kind}"] = part
    return weights


@torch.no_grad()
def vision_features(model: "LlavaForConditionalGeneration", pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Inputs of the projector from the frozen tower, (N, patches, D), in half precision to save memory."""
    chunks = []
    for start in range(0, len(pixels), 256):
        outputs = model.model.vision_tower(pixel_values(pixels[start : start + 256]), output_hidden_states=True)
        chunks.append(outputs.hidden_states[READ_LAYER][:, 1:].half())
    return torch.cat(chunks)


class CaptionTask:
    """Loss of noisy captions and answers with and without their image, on cached features of the frozen tower."""

    def __init__(
        self,
        model: "LlavaForConditionalGeneration",
        scenes: Sequence[Scene],
        features: torch.Tensor,
        seed: int,
        noise: CaptionNoise | None = None,
        language: Language = PLAIN,
    ) -> None:
        self.model, self.scenes, self.features, self.noise = model, scenes, features, noise
        self.language, self.processor = language, build_processor(language)
        self.captioner = Captioner(model, self.processor)
        self.rng = random.Random(seed)

    def loss(self, rows: Sequence[int]) -> torch.Tensor:
        """Mean loss per caption token over the scenes ``rows``, and weighted that of questions about some of them.

        The last ``TEXT_ONLY_SHARE`` of captions and of questions have no image.
        """
        captions = [(world.PROMPT, self.language.noisy_caption(self.scenes[row], self.rng, self.noise)) for row in rows]
        loss = self._loss(rows, captions)
        if not self.language.questions():
            return loss
        asked = rows[: round(len(rows) * QUESTIONS_PER_SCENE)]
        questions = [(row, questions_about.draw_question(self.scenes[row], self.rng)) for row in asked]
        answers = [
            (question.text, questions_about.noisy_answer(question, self.scenes[row], self.rng))
            for row, question in questions
        ]
        return loss + QUESTION_WEIGHT * self._loss(asked, answers)

    def _loss(self, rows: Sequence[int], turns: Sequence[tuple[str, str]]) -> torch.Tensor:
        """Mean loss per token of the replies in ``turns``, (prompt, reply) about each of the scenes ``rows``."""
        with_image = len(rows) - round(len(rows) * TEXT_ONLY_SHARE)
        losses = [self._reply_losses(rows[:with_image], turns[:with_image])]
        if with_image < len(rows):
            losses.append(self._reply_losses(None, turns[with_image:]))
        return torch.cat(losses).mean()

    def _reply_losses(self, rows: Sequence[int] | None, turns: Sequence[tuple[str, str]]) -> torch.Tensor:
        """Loss of every token of the replies, (tokens,); ``rows`` are the scenes shown, None without images."""
        prompts = [self._prompt_ids(prompt, image=rows is not None) for prompt, _ in turns]
        replies = self.processor.tokenizer([f" {reply}" for _, reply in turns], add_special_tokens=False).input_ids
        end = self.processor.tokenizer.eos_token_id
        ids_BL, targets_BL = (
            nn.utils.rnn.pad_sequence([torch.tensor(row) for row in sequences], batch_first=True, padding_value=padding)
            for sequences, padding in (
                ([[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)], 0),
                (
                    [
                        [*[IGNORED] * (len(prompt) - 1), *reply, end]
                        for prompt, reply in zip(prompts, replies, strict=True)
                    ],
                    IGNORED,
                ),
            )
        )
        inputs_BLD = self.model.get_input_embeddings()(ids_BL)
        if rows is not None:
            projected = self.model.model.multi_modal_projector(self.features[list(rows)].float())
            image_BL = ids_BL == self.model.config.image_token_index
            inputs_BLD = inputs_BLD.masked_scatter(image_BL[..., None], projected)
        hidden_BLD = self.model.model.language_model(inputs_embeds=inputs_BLD, use_cache=False).last_hidden_state
        predicted_BL = targets_BL != IGNORED
        return F.cross_entropy(self.model.lm_head(hidden_BLD[predicted_BL]), targets_BL[predicted_BL], reduction="none")

    @lru_cache(maxsize=4096)  # noqa: B019 - a task lives as long as the training
    def _prompt_ids(self, text: str, *, image: bool) -> list[int]:
        return self.captioner.prompt_ids(text, self.captioner.blank if image else None)


def train_captioner(
    model: "LlavaForConditionalGeneration",
    task: CaptionTask,
    steps: int,
    batch: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train projector and language model in place."""
    optimiser = Optimiser(model.named_parameters(), steps, MATRIX_RATE, OTHER_RATE)
    order = batches(len(task.scenes), batch, np.random.default_rng(seed))
    for step, rows in zip(range(steps), order, strict=False):
        loss = task.loss(rows.tolist())
        optimiser.step(loss)
        if progress is not None:
            progress("captioner", step + 1, steps, loss.item())
    model.eval()
