"""Pre-training of the prose world's CLIP: a new text tower on the vision tower of MiniWorld's CLIP.

The images of both worlds are the same, so the vision tower is kept and frozen; its projection and the text tower are
trained with the sigmoid loss of ``clip.py``. The sentences of a batch are drawn from the grammar: a true sentence for
each image and a hard negative, which is the same sentence with another object or colour.

Shape suffixes: S scenes, B images, T sentences, D width.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from jsfree.miniworld import prose
from jsfree.miniworld.prose import Claim, Sentence
from jsfree.miniworld.vocabulary import COLOURS, CONTEXTS, OBJECTS, POSITIONS
from jsfree.miniworld.world import Scene, SceneObject, box_at, draw_object, pick
from jsfree.pretraining.clip import ABSENT_SHARE, IntArray, build_clip, pixel_values, sigmoid_loss
from jsfree.pretraining.languages import PROSE
from jsfree.pretraining.optimisation import Optimiser, Progress, batches
from jsfree.pretraining.tables import SceneTable
from jsfree.pretraining.tokenizers import clip_tokenizer

MATRIX_RATE, OTHER_RATE = 0.02, 2e-3
CAPTION_SHARE = 0.2
"""Share of the images whose sentence is drawn from a whole caption, so that contexts, pronouns and fillers occur."""


def scene_truth(table: SceneTable, rows: IntArray, sentences: Sequence[Sentence]) -> NDArray[np.float64]:
    """Whether each sentence is true of each scene, (B, T): 1, 0, or NaN if it is not known.

    It is not known of positions and relations, unless an object is wrong, nor of sentences that state nothing.
    """
    truth_BT = np.ones((len(rows), len(sentences)))
    colours_BO, contexts_B = table.colours[rows], table.contexts[rows]
    for column, sentence in enumerate(sentences):
        right_B = np.ones(len(rows), bool)
        if sentence.context is not None:
            right_B &= contexts_B == _CONTEXT_NUMBERS[sentence.context]
        for claim in sentence.claims:
            right_B &= _claim_truth(colours_BO, claim)
        stated = sentence.context is not None or sentence.claims
        certain = stated and not sentence.has_layout
        truth_BT[:, column] = np.where(right_B, 1.0 if certain else np.nan, 0.0)
    return truth_BT


def _claim_truth(colours_BO: IntArray, claim: Claim) -> NDArray[np.bool_]:
    colour = None if claim.colour is None else _COLOUR_NUMBERS[claim.colour]
    named_BO = colours_BO if claim.name is None else colours_BO[:, [_OBJECT_NUMBERS[claim.name]]]
    right_BO: NDArray[np.bool_] = named_BO >= 0 if colour is None else named_BO == colour
    right_B: NDArray[np.bool_] = np.logical_or.reduce(right_BO, axis=1)
    return right_B


class SentencePairs:
    """Draws a true sentence of each scene and the same sentence with an error, a hard negative."""

    def __init__(self, scenes: Sequence[Scene], seed: int) -> None:
        self.scenes, self.rng = scenes, random.Random(seed)

    def draw(self, rows: IntArray) -> tuple[list[Sentence], list[Sentence]]:
        """True sentences and hard negatives of the scenes ``rows``."""
        pairs = [self._pair(self.scenes[row]) for row in rows]
        return [true for true, _ in pairs], [false for _, false in pairs]

    def _pair(self, scene: Scene) -> tuple[Sentence, Sentence]:
        rng = self.rng
        absent = draw_object(scene.context, {item.name for item in scene.objects}, rng)
        if rng.random() < CAPTION_SHARE:
            caption = prose.describe(scene.context, _shuffled(scene.objects, rng), rng)
            position = pick(POSITIONS, rng)
            other = SceneObject(absent, pick(tuple(COLOURS), rng), position, box_at(position))
            return pick(caption, rng), prose.object_sentence([other], rng)
        group = _shuffled(scene.objects, rng)[: pick(prose.SENTENCE_SIZES, rng)]
        wording, place = rng.random(), int(rng.random() * len(group))
        before, after = group[:place], group[place + 1 :]
        true = prose.object_sentence(group, random.Random(wording))
        if rng.random() >= ABSENT_SHARE:
            other_colours = tuple(colour for colour in COLOURS if colour != group[place].colour)
            other = replace(group[place], colour=pick(other_colours, rng))
            false = prose.object_sentence([*before, other, *after], random.Random(wording))
            # They are equal if the sentence does not state the colour.
            if false.claims != true.claims:
                return true, false
        other = replace(group[place], name=absent)
        return true, prose.object_sentence([*before, other, *after], random.Random(wording))


def pooled_features(visual: Any, pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Outputs of the frozen vision tower before its projection, (N, D)."""
    projection, visual.proj = visual.proj, None
    with torch.no_grad():
        chunks = [visual(pixel_values(pixels[start : start + 256])) for start in range(0, len(pixels), 256)]
    visual.proj = projection
    return torch.cat(chunks)


def train_prose_clip(
    plain: Any,
    scenes: Sequence[Scene],
    table: SceneTable,
    steps: int,
    batch: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Any:
    """Train a CLIP for prose on the vision tower of ``plain``, MiniWorld's CLIP.

    Args:
        scenes: the scenes of ``table``.
    """
    torch.manual_seed(seed)
    model, tokenizer = build_clip(PROSE), clip_tokenizer(PROSE)
    model.visual.load_state_dict(plain.visual.state_dict())
    model.visual.requires_grad_(False).eval()
    model.visual.proj.requires_grad_(True)
    features_SD = pooled_features(model.visual, table.pixels)
    optimiser = Optimiser(model.named_parameters(), steps, MATRIX_RATE, OTHER_RATE)
    pairs = SentencePairs(scenes, seed)
    order = batches(len(scenes), batch, np.random.default_rng(seed))
    for step, rows in zip(range(steps), order, strict=False):
        true, false = pairs.draw(rows)
        own = np.eye(len(rows), 2 * len(rows), dtype=bool)
        truth_BT = torch.from_numpy(np.where(own, 1.0, scene_truth(table, rows, [*true, *false]))).float()
        hard_BT = torch.from_numpy(np.roll(own, len(rows), 1))
        texts = [sentence.text for sentence in (*true, *false)]
        ids_TL = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        image_BD = F.normalize(features_SD[rows] @ model.visual.proj, dim=-1)
        text_TD = model.encode_text(ids_TL, normalize=True)
        logits_BT = model.logit_scale.exp() * image_BD @ text_TD.T + model.logit_bias
        loss = sigmoid_loss(logits_BT, truth_BT, hard_BT)
        optimiser.step(loss)
        if progress is not None:
            progress("prose clip", step + 1, steps, loss.item())
    return model.eval()


_OBJECT_NUMBERS = {name: number for number, name in enumerate(OBJECTS)}
_COLOUR_NUMBERS = {colour: number for number, colour in enumerate(COLOURS)}
_CONTEXT_NUMBERS = {context: number for number, context in enumerate(CONTEXTS)}


def _shuffled(items: Sequence[SceneObject], rng: random.Random) -> list[SceneObject]:
    return sorted(items, key=lambda _: rng.random())
