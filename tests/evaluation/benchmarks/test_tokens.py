"""Tokens are those of NLTK's word_tokenize, as far as the search for objects depends on them."""

import pytest

from jsfree.evaluation.benchmarks.tokens import tokenize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog. A cat.", "a dog . a cat ."),
        ("The dog's tail, and the dogs' bowls", "the dog 's tail , and the dogs ' bowls"),
        ("a dog/cat, a hot-dog and a dog.A cat", "a dog/cat , a hot-dog and a dog.a cat"),
        ('He said "a dog." Then (a cat).', 'he said " a dog . " then ( a cat ) .'),
        ("It isn't a bus; they'll see at 12:30!", "it is n't a bus ; they 'll see at 12:30 !"),
        ("a cat,dog... and a kite -- maybe", "a cat , dog ... and a kite -- maybe"),
        ("on 8th ave. and Main st. near Mr. Fox", "on 8th ave. and main st. near mr. fox"),
        ("on 8th ave.", "on 8th ave ."),
        ("the “dog” and the cat’s bowl", "the “ dog ” and the cat ’ s bowl"),
        ("1,000 dogs\n\n- a cat:b", "1,000 dogs - a cat : b"),
        ("I cannot", "i can not"),
        ("", ""),
    ],
)
def test_tokens(text, expected):
    assert " ".join(tokenize(text)) == expected
