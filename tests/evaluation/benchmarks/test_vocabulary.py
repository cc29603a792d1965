"""Mentions of objects in the words of a text."""

import pytest

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.vocabulary import COCO_CATEGORIES, built_in, load


def found(text, vocabulary=None):
    reading = (vocabulary or built_in()).read(text.split())
    return [(mention.word, mention.category, mention.index) for mention in reading.mentions]


def test_the_built_in_vocabulary_has_cocos_categories_and_no_word_twice():
    words = [word for words in built_in().synonyms.values() for word in words]
    assert built_in().synonyms.keys() == COCO_CATEGORIES
    assert len(COCO_CATEGORIES) == 80
    assert sorted(words) == sorted(set(words))
    assert all(word == word.strip().lower() for word in words)


def test_repeats_are_kept_and_pairs_have_the_index_of_their_first_word():
    assert found("a dog near a stop sign and a puppy") == [
        ("dog", "dog", 1),
        ("stop sign", "stop sign", 4),
        ("puppy", "dog", 8),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a baby elephant and an adult bear", ["elephant", "bear"]),
        ("a baby person", ["baby", "person"]),
        ("a passenger train", ["train"]),
        ("a train track", []),
        ("a bow tie", ["tie"]),
        ("a toilet seat and a seat", ["toilet"]),
        ("the seat of the toilet", ["toilet"]),
        ("the seat of the car", ["seat", "car"]),
        ("a wine glas", ["wine glass"]),
        ("a hot dog house", ["hot dog"]),
    ],
)
def test_pairs(text, words):
    assert [word for word, _, _ in found(text)] == words


def test_a_file_of_another_vocabulary(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text("gadget, gizmo, thinga majig,  lost one\ndining table, table \n", encoding="utf-8")
    vocabulary = load(path)
    text = "a gizmo on a table by a thinga majig by a dining table , lost one"
    assert found(text, vocabulary) == [
        ("gizmo", "gadget", 1),
        ("table", "dining table", 4),
        ("thinga majig", "gadget", 7),
        ("table", "dining table", 12),
    ]
    assert ("dining table", "dining table", 11) in found(text, load(path, all_phrases=True))


def test_wrong_files_are_refused(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text("dog, hound\ndog, puppy\n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"synonyms.txt, line 2: the category 'dog' occurs twice"):
        load(path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(SourceError, match="has no category"):
        load(path)
    with pytest.raises(SourceError, match="cannot be read"):
        load(tmp_path / "absent.txt")
