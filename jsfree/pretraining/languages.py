"""The two ways in which MiniWorld's scenes are described: what the pre-training of their models differs in."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from jsfree.miniworld import prose, world
from jsfree.miniworld.questions import question_texts
from jsfree.miniworld.world import CaptionNoise, Scene
from jsfree.pretraining.tables import sentence_table


@dataclass(frozen=True)
class Language:
    """Captions of a world and the texts that its tokenizers are trained on.

    ``sentences`` and ``questions`` contain every word of the captions, and of questions and answers, at least once.
    """

    noisy_caption: Callable[[Scene, random.Random, CaptionNoise | None], str]
    sentences: Callable[[], list[str]]
    questions: Callable[[], list[str]]
    clip_context: int
    clip_text_layers: int


PLAIN = Language(
    world.noisy_caption, lambda: list(sentence_table().texts), question_texts, clip_context=16, clip_text_layers=1
)
# The captioner of the prose world answers no questions.
PROSE = Language(prose.noisy_caption, lambda: list(prose.all_words()), list, clip_context=32, clip_text_layers=2)
