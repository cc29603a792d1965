"""Captions are split into sentences, and long sentences into the largest pieces that fit."""

import pytest

from jsfree.stages.sentences import sentences, sub_sentences


def words_fit(limit):
    return lambda text: len(text.split()) <= limit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man rides. He smiles!  Does he?", ["A man rides.", "He smiles!", "Does he?"]),
        (
            "a kitchen . there is a red cup on the left . there is a blue ball at the top .",
            ["a kitchen .", "there is a red cup on the left .", "there is a blue ball at the top ."],
        ),
        (
            "This is a kitchen. There is a red cup at the top left.",
            ["This is a kitchen.", "There is a red cup at the top left."],
        ),
        ("a cup ! there is a ball ?  yes .", ["a cup !", "there is a ball ?", "yes ."]),
        ("Objects:\n1. A dog.\n2) A cat\n- a cup\n* a ball\n", ["Objects:", "A dog.", "A cat", "a cup", "a ball"]),
        ("There are: 1. a cat. 2. a dog.", ["There are: 1.", "a cat.", "a dog."]),
        ("Mr. Smith is 1.80 m tall. He waves.", ["Mr. Smith is 1.80 m tall.", "He waves."]),
        ("First paragraph.\n\nSecond one", ["First paragraph.", "Second one"]),
        ("一只猫。还有一只狗！", ["一只猫。", "还有一只狗！"]),
        ("Un café à Zürich. Ça va.", ["Un café à Zürich.", "Ça va."]),
        ("2 dogs play. -5 degrees", ["2 dogs play.", "-5 degrees"]),
        ("", []),
        (" \n\t ", []),
        ("... !! -", []),
    ],
)
def test_captions_are_split_into_sentences(text, expected):
    assert sentences(text) == expected


def test_a_sentence_that_fits_is_not_split():
    assert sub_sentences(" a cup, and a ball ", words_fit(5)) == ["a cup, and a ball"]


def test_clauses_are_joined_while_they_fit():
    sentence = "a red cup, a blue ball; a dog, a cat: a hat"
    assert sub_sentences(sentence, words_fit(6)) == ["a red cup, a blue ball;", "a dog, a cat: a hat"]


def test_a_long_clause_is_split_before_conjunctions_then_between_words():
    sentence = "in it, a large brown dog with a red ball and a cat"
    assert sub_sentences(sentence, words_fit(6)) == ["in it,", "a large brown dog", "with a red ball", "and a cat"]
    assert sub_sentences("one two three four five", words_fit(2)) == ["one two", "three four", "five"]


def test_a_word_is_split_only_when_it_does_not_fit_alone():
    pieces = sub_sentences("see abcdefghij now", lambda text: len(text) <= 4)
    assert pieces == ["see", "abcd", "efgh", "ij", "now"]
    assert sub_sentences("一只猫，一只狗，一只鸟", lambda text: len(text) <= 8) == ["一只猫，一只狗，", "一只鸟"]


def test_pieces_fit_and_keep_every_word():
    sentence = "The image shows a busy street, with people; some walk and some ride bicycles: " * 20
    fits = words_fit(7)
    pieces = sub_sentences(sentence, fits)
    assert all(fits(piece) for piece in pieces)
    assert " ".join(pieces).split() == sentence.split()


def test_a_character_that_can_never_fit_is_returned():
    assert sub_sentences("ab", lambda _: False) == ["a", "b"]
