"""Pre-training of MiniWorld's captioners on cached features of their frozen vision tower, for any family.

The projector and the language model learn from noisy captions (``world.noisy_caption``), which give the seed m0 the
language prior that makes it hallucinate, and from questions with short, noisy answers (``questions.noisy_answer``).
Some rows have no image, like the text-only rows of LLaVA's training data; their prompt is that of the method's
unconditional path.

Shape suffixes: A axes of positions, B rows, L positions, V vocabulary, D width.
"""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jsfree.miniworld import questions as questions_about
from jsfree.miniworld import world
from jsfree.miniworld.world import CaptionNoise, Scene
from jsfree.models.families.base import TOWER, ImageInputs, Prompt, split_features
from jsfree.models.loading import Captioner
from jsfree.pretraining.languages import PLAIN, Language
from jsfree.pretraining.optimisation import Optimiser, Progress, batches

MATRIX_RATE, OTHER_RATE = 0.02, 3e-3
TEXT_ONLY_SHARE = 0.125
QUESTIONS_PER_SCENE = 0.5
QUESTION_WEIGHT = 0.3
"""Weight of the mean loss per answer token, relative to that of captions."""
IGNORED = -100
CACHED_IMAGES = 256
"""Images whose features are computed together."""


@torch.no_grad()
def tower_features(captioner: Captioner, scenes: Sequence[Scene]) -> list[ImageInputs]:
    """Inputs of the projector from the frozen tower for each scene, in half precision to save memory."""
    found: list[ImageInputs] = []
    for start in range(0, len(scenes), CACHED_IMAGES):
        images = [captioner.inputs(world.draw(scene)) for scene in scenes[start : start + CACHED_IMAGES]]
        features = captioner.family.features(captioner.model, captioner.batch(images))
        found += split_features({name: tensor.half() for name, tensor in features.items()}, images)
    return found


class CaptionTask:
    """Loss of noisy captions and answers with and without their image, on cached features of the frozen tower.

    Args:
        images: what ``tower_features`` returns for ``scenes``.
        reply_start: what separates a reply from its prompt.
    """

    def __init__(
        self,
        captioner: Captioner,
        scenes: Sequence[Scene],
        images: Sequence[ImageInputs],
        seed: int,
        noise: CaptionNoise | None = None,
        language: Language = PLAIN,
        reply_start: str = " ",
    ) -> None:
        self.captioner, self.scenes, self.images, self.noise = captioner, scenes, images, noise
        self.model: Any = captioner.model
        self.language, self.reply_start = language, reply_start
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
        tokenizer = self.captioner.processor.tokenizer
        prompts = [self._prompt(prompt, with_image=rows is not None) for prompt, _ in turns]
        texts = [f"{self.reply_start}{reply}" for _, reply in turns]
        replies = tokenizer(texts, add_special_tokens=False).input_ids
        pairs = list(zip(prompts, replies, strict=True))
        ids_BL = _padded([[*prompt.ids, *reply] for prompt, reply in pairs], 0)
        ends = [[*[IGNORED] * (len(prompt) - 1), *reply, tokenizer.eos_token_id] for prompt, reply in pairs]
        targets_BL = _padded(ends, IGNORED)
        inputs_BLD, arguments = self.model.get_input_embeddings()(ids_BL), {}
        if rows is not None:
            visual = self.captioner.family.project(self.model, self.captioner.batch([self.images[row] for row in rows]))
            is_image_BL = ids_BL == self.model.config.image_token_id
            inputs_BLD = inputs_BLD.masked_scatter(is_image_BL[..., None], visual.embeddings)
            arguments = self.captioner.family.language_arguments(visual, is_image_BL)
        hidden_BLD = self.captioner.language_model(
            inputs_embeds=inputs_BLD, position_ids=_positions(prompts, ids_BL.shape[1]), use_cache=False, **arguments
        ).last_hidden_state
        predicted_BL = targets_BL != IGNORED
        return F.cross_entropy(self.model.lm_head(hidden_BLD[predicted_BL]), targets_BL[predicted_BL], reduction="none")

    @lru_cache(maxsize=4096)  # noqa: B019 - a task lives as long as the training
    def _prompt(self, text: str, *, with_image: bool) -> Prompt:
        """Prompt for an image, which are all of one size, or without one."""
        return self.captioner.prompt(text, self.captioner.blank if with_image else None)


def _padded(rows: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)


def _positions(prompts: Sequence[Prompt], length: int) -> torch.Tensor:
    """Positions of prompts and of what follows them up to ``length`` tokens: (B, L), or (A, B, L) for M-RoPE."""
    rows = []
    for prompt in prompts:
        following = prompt.next_position + torch.arange(length - len(prompt))
        rows.append(torch.cat([prompt.positions, following.expand(len(prompt.positions), -1)], 1))
    found = torch.stack(rows, 1)
    return found[0] if len(found) == 1 else found


def train_captioner(
    task: CaptionTask,
    steps: int,
    batch: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train projector and language model in place; the vision tower is frozen."""
    captioner = task.captioner
    for name, parameter in task.model.named_parameters():
        parameter.requires_grad_(captioner.family.part_of(name) != TOWER)
    optimiser = Optimiser(task.model.named_parameters(), steps, MATRIX_RATE, OTHER_RATE)
    order = batches(len(task.scenes), batch, np.random.default_rng(seed))
    for step, rows in zip(range(steps), order, strict=False):
        loss = task.loss(rows.tolist())
        optimiser.step(loss)
        if progress is not None:
            progress("captioner", step + 1, steps, loss.item())
    task.model.eval()
