"""Questions about MiniWorld's scenes with short answers, in the form of the field's discriminative benchmarks.

They ask whether an object exists (as POPE, arXiv 2305.10355), whether it has a colour (as AMBER, arXiv 2311.07397),
which colour it has, and whether a sentence of a caption is true. The answer to the first, second and last is "Yes." or
"No.".
"""

import random
from dataclasses import dataclass

from jsfree.miniworld.vocabulary import COLOURS, CONTEXTS, OBJECTS, POSITIONS
from jsfree.miniworld.world import Scene, draw_object, fair_positions, object_sentence, pick

YES, NO = "Yes.", "No."


@dataclass(frozen=True)
class Question:
    """A question about the object ``noun``, which may be absent from the image, and its true answer."""

    noun: str
    text: str
    answer: str


@dataclass(frozen=True)
class AnswerNoise:
    """Probabilities of wrong answers in pre-training, which give the seed model the "yes" bias of real ones.

    ``native`` applies to absent objects that are typical of the scene's context, ``foreign`` to other absent objects,
    and ``present`` to everything else.
    """

    native: float = 0.2
    foreign: float = 0.02
    present: float = 0.04


def existence_question(name: str) -> str:
    """The question whether an object is in the image."""
    return f"Is there a {name} in the image?"


def colour_question(name: str) -> str:
    """The question for the colour of an object."""
    return f"What color is the {name}?"


def attribute_question(name: str, colour: str) -> str:
    """The question whether an object has a colour."""
    return f"Is the {name} {colour}?"


def statement_question(sentence: str) -> str:
    """The question whether a sentence about the image is true."""
    return f"Is this true? {sentence}"


def draw_question(scene: Scene, rng: random.Random) -> Question:
    """Draw a question of any kind about ``scene``; half of those with yes or no as answer are answered by yes."""
    item = pick(scene.objects, rng)
    is_true = rng.random() < 0.5
    kind = pick(("existence", "existence", "statement", "statement", "attribute", "colour"), rng)
    if kind == "colour":
        return Question(item.name, colour_question(item.name), f"{item.colour.capitalize()}.")
    answer = YES if is_true else NO
    if kind == "attribute":
        colour = item.colour if is_true else _other(tuple(COLOURS), {item.colour}, rng)
        return Question(item.name, attribute_question(item.name, colour), answer)
    absent = draw_object(scene.context, {other.name for other in scene.objects}, rng)
    if kind == "existence":
        noun = item.name if is_true else absent
        return Question(noun, existence_question(noun), answer)
    name, colour, position = item.name, item.colour, item.position
    if not is_true:
        change = pick(("object", "object", "colour", "position"), rng)
        if change == "object":
            name, colour, position = absent, pick(tuple(COLOURS), rng), pick(POSITIONS, rng)
        elif change == "colour":
            colour = _other(tuple(COLOURS), {colour}, rng)
        else:
            position = _other(POSITIONS, set(fair_positions(item.box)), rng)
    return Question(name, statement_question(object_sentence(name, colour, position)), answer)


def noisy_answer(question: Question, scene: Scene, rng: random.Random, noise: AnswerNoise | None = None) -> str:
    """The answer of a careless annotator: the target of the captioner's pre-training."""
    noise = noise or AnswerNoise()
    is_present = question.noun in {item.name for item in scene.objects}
    absent_rate = noise.native if question.noun in CONTEXTS[scene.context] else noise.foreign
    if rng.random() >= (noise.present if is_present else absent_rate):
        return question.answer
    if question.answer in (YES, NO):
        return NO if question.answer == YES else YES
    return f"{pick(tuple(COLOURS), rng).capitalize()}."


def question_texts() -> list[str]:
    """Texts with every word of questions and answers, for tokenizers."""
    texts = [existence_question(name) for name in OBJECTS]
    texts += [colour_question(OBJECTS[0]), attribute_question(OBJECTS[0], "red"), statement_question("There is a cup.")]
    return [*texts, YES, NO, *(f"{colour.capitalize()}." for colour in COLOURS)]


def _other(choices: tuple[str, ...], excluded: set[str], rng: random.Random) -> str:
    return pick([choice for choice in choices if choice not in excluded], rng)
