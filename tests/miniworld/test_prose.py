"""Prose captions are true, varied, and hallucinate as the plain ones do."""

import itertools
import random
import re
from collections import Counter
from statistics import mean

import pytest

from jsfree.evaluation.miniworld import count_caption, mentions
from jsfree.miniworld import prose, world
from jsfree.miniworld.sheet import picture_sheet
from jsfree.miniworld.vocabulary import IRREGULAR_PLURALS, OBJECTS
from jsfree.miniworld.wording import FILLERS, RELATION_WORDINGS, SYNONYM_PLURALS, SYNONYMS
from jsfree.miniworld.world import SceneObject

SCENES = [world.scene("pretrain", index) for index in range(1500)]
RELATION = re.compile(
    "|".join(sorted((text for texts in RELATION_WORDINGS.values() for text in texts), key=len, reverse=True))
)


def described(scene, seed=None):
    rng = random.Random(scene.index if seed is None else seed)
    return prose.describe(scene.context, scene.objects, rng)


def at(left, top):
    return SceneObject(
        "cup", "red", world.position_of((left, top, left + 16, top + 16)), (left, top, left + 16, top + 16)
    )


def test_true_captions_name_every_object_once_with_correct_attributes():
    rng = random.Random(0)
    for scene in SCENES:
        caption = prose.true_caption(scene, rng)
        count = count_caption(scene, caption)
        assert (count.hallucinated, count.attribute_errors, count.duplicates) == (0, 0, 0), caption
        assert count.distinct_correct == len(scene.objects), caption


def test_stated_relations_are_true():
    checked = Counter()
    for scene in SCENES:
        centres = {
            item.name: ((item.box[0] + item.box[2]) / 2, (item.box[1] + item.box[3]) / 2) for item in scene.objects
        }
        subject = None
        for sentence in described(scene):
            named = mentions(sentence.text)
            relation = RELATION.search(sentence.text)
            if relation and named:
                first = subject if sentence.text.startswith("It") else named[0].noun
                second = next(mention.noun for mention in named if mention.start > relation.start())
                (x, y), (other_x, other_y) = centres[first], centres[second]
                word = relation.group()
                checked[word] += 1
                if "left" in word:
                    assert x < other_x, sentence
                elif "right" in word:
                    assert x > other_x, sentence
                elif word in ("above", "higher than"):
                    assert y < other_y, sentence
                elif word in ("below", "under"):
                    assert y > other_y, sentence
                else:
                    assert (x - other_x) ** 2 + (y - other_y) ** 2 <= 26**2, sentence
            if named:
                subject = named[0].noun
    assert set(checked) == {text for texts in RELATION_WORDINGS.values() for text in texts}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((10, 30), ("near", "above")),
        ((10, 48), ("above",)),
        ((40, 14), ("left",)),
        ((26, 26), ("near",)),
        ((46, 46), ()),
    ],
)
def test_relations_follow_from_the_centres(second, expected):
    assert prose.relations(at(8, 8), at(*second)) == expected
    opposite = {"above": "below", "left": "right"}
    assert prose.relations(at(*second), at(8, 8)) == tuple(opposite.get(name, name) for name in expected)


def test_a_sentence_states_what_its_text_says():
    for scene in SCENES:
        for sentence in described(scene):
            claimed = [claim for claim in sentence.claims if claim.name is not None]
            found = mentions(sentence.text)
            assert [(claim.name, claim.colour) for claim in claimed] == [(item.noun, item.colour) for item in found]
            assert (sentence.context is not None) == any(word in sentence.text for word in (f"a {scene.context}.",))


def test_captions_are_varied():
    sentences = [sentence for scene in SCENES for sentence in described(scene)]
    sizes = Counter(len(mentions(sentence.text)) for sentence in sentences if sentence.context is None)
    assert set(sizes) == {0, 1, 2, 3}
    assert sizes[2] + sizes[3] > sizes[1] / 2
    assert any(sentence.text.startswith("It is ") for sentence in sentences)
    assert any(sentence.text in FILLERS for sentence in sentences)
    stated = [claim.colour is not None for sentence in sentences for claim in sentence.claims if claim.name]
    assert 0.6 < mean(stated) < 0.8
    assert len({described(SCENES[0], seed)[1].text for seed in range(40)}) > 20


def test_a_pronoun_follows_a_sentence_about_one_object():
    for scene in SCENES:
        sentences = described(scene)
        for before, after in itertools.pairwise(sentences):
            if after.text.startswith("It"):
                assert len(before.claims) == 1, (before, after)


def test_every_noun_belongs_to_one_object():
    nouns = [noun.lower() for name in OBJECTS for noun in (name, *SYNONYMS.get(name, ()))]
    plurals = [*IRREGULAR_PLURALS.values(), *SYNONYM_PLURALS.values()]
    assert len(set(nouns + plurals)) == len(nouns + plurals)
    assert set(SYNONYMS) <= set(OBJECTS)


def test_noisy_captions_hallucinate_more_often_than_plain_ones_and_are_short():
    rng, plain_rng = random.Random(0), random.Random(0)
    counts = [count_caption(scene, prose.noisy_caption(scene, rng)) for scene in SCENES]
    plain = [count_caption(scene, world.noisy_caption(scene, plain_rng)) for scene in SCENES]
    absent, plain_absent = (mean(count.hallucinated > 0 for count in each) for each in (counts, plain))
    assert 0.05 < absent - plain_absent < 0.2
    assert mean(count.words for count in counts) < 40
    assert all(count.duplicates == 0 for count in counts)


def test_captions_depend_only_on_the_random_generator():
    scene = SCENES[7]
    assert prose.noisy_caption(scene, random.Random(5)) == prose.noisy_caption(scene, random.Random(5))


def test_the_picture_sheet_shows_prose(tmp_path):
    for name in ("plain", "prose"):
        picture_sheet("development", 2, tmp_path / f"{name}.png", name)
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "prose.png").read_bytes()


def test_all_words_are_listed():
    rng, words = random.Random(1), set(prose.all_words())
    for scene in SCENES:
        written = set(re.findall(r"\w+|[.,]", prose.noisy_caption(scene, rng)))
        assert written <= words
