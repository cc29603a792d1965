"""Questions have the true answer, of both kinds in equal number, and careless answers err where the seed should."""

import random

import pytest

from jsfree.miniworld import questions, world
from jsfree.miniworld.questions import AnswerNoise, Question, draw_question, noisy_answer
from jsfree.miniworld.vocabulary import CONTEXTS, OBJECTS


@pytest.fixture(scope="module")
def drawn() -> list[tuple[world.Scene, Question]]:
    rng = random.Random(0)
    scenes = [world.scene("development", index) for index in range(300)]
    return [(scene, draw_question(scene, rng)) for scene in scenes]


def truth(scene: world.Scene, text: str) -> str:
    """The answer, read from the scene."""
    named = {item.name: item for item in scene.objects}
    words = text.rstrip(".?").split()
    if text.startswith("What color"):
        return f"{named[words[-1]].colour.capitalize()}."
    if text.startswith("Is there"):
        return questions.YES if words[3] in named else questions.NO
    if text.startswith("Is the "):
        return questions.YES if named[words[2]].colour == words[3] else questions.NO
    assert text.startswith("Is this true? There is a ")
    colour, name, position = words[6], words[7], " ".join(words[8:])
    fits = name in named and named[name].colour == colour and position in world.fair_positions(named[name].box)
    return questions.YES if fits else questions.NO


def test_answers_are_true(drawn):
    for scene, question in drawn:
        assert question.answer == truth(scene, question.text), question.text


def test_all_kinds_are_asked_and_half_the_answers_are_yes(drawn):
    starts = {" ".join(question.text.split()[:2]) for _, question in drawn}
    assert starts == {"Is there", "Is the", "Is this", "What color"}
    closed = [question.answer for _, question in drawn if question.answer in (questions.YES, questions.NO)]
    assert 0.4 < closed.count(questions.YES) / len(closed) < 0.6


@pytest.mark.parametrize(
    ("noise", "wrong"),
    [
        (AnswerNoise(0, 0, 0), set()),
        (AnswerNoise(1, 0, 0), {"native"}),
        (AnswerNoise(0, 1, 0), {"foreign"}),
        (AnswerNoise(0, 0, 1), {"present"}),
    ],
)
def test_noise_depends_on_whether_the_object_is_present_or_typical(noise, wrong):
    rng = random.Random(0)
    scene = world.scene("development", 0)
    for name in OBJECTS:
        kind = "native" if name in CONTEXTS[scene.context] else "foreign"
        if name in {item.name for item in scene.objects}:
            kind = "present"
        true = truth(scene, questions.existence_question(name))
        answer = noisy_answer(Question(name, questions.existence_question(name), true), scene, rng, noise)
        assert (answer != true) == (kind in wrong)
