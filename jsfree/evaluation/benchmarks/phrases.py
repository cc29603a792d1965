"""Objects in the phrases that an extractor found: "the man's blue jeans" -> "man", "jean".

Object HalBench tags each phrase with spaCy and keeps its runs of nouns. Here a rule tells nouns from other words, so
that no tagger is needed: a word is no noun if it is on a list of adjectives, determiners and prepositions, or has an
ending of adjectives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from jsfree.evaluation.benchmarks.tokens import tokenize
from jsfree.evaluation.benchmarks.vocabulary import Vocabulary
from jsfree.judge.replies import FENCE, ReplyError

_WORD = re.compile(r"[^\W\d_][\w'-]*$")
_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "people",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "oxen": "ox",
    "knives": "knife",
    "leaves": "leaf",
    "shelves": "shelf",
    "wolves": "wolf",
    "calves": "calf",
    "loaves": "loaf",
    "thieves": "thief",
}
_ENDINGS = (
    ("ies", "y"),
    ("sses", "ss"),
    ("shes", "sh"),
    ("ches", "ch"),
    ("xes", "x"),
    ("buses", "bus"),
    ("ss", "ss"),
    ("us", "us"),
    ("is", "is"),
    ("s", ""),
)
_OTHER_WORDS = """
a an the this that these those some any all both each every several various many few more most other another such
no own same different numerous multiple additional individual single double entire whole half couple one two three
four five six seven eight nine ten eleven twelve first second third last next my your his her its their our it they
them he she him who which what there here of in on at with without near by from to into over under above below
behind beside between around along through inside outside across against for as and or but not very quite up down
out off is are was were be been being has have had do does can may black white red blue green yellow brown pink
purple gray grey beige tan blonde golden silver dark light bright pale colorful colourful big large small little
tiny huge tall short long wide narrow thick thin high low deep flat round square old young new modern vintage
antique ancient fresh clean dirty dry wet empty full open closed good nice great beautiful pretty cute lovely
elegant simple plain clear sharp soft hard smooth rough fluffy hot cold warm cool sunny cloudy rainy snowy busy
quiet calm wild domestic happy sad male-dominated main major minor upper lower middle left right front rear sandy
grassy rocky muddy dusty rusty hairy furry leafy shiny striped checkered plaid fancy stylish casual formal
comfortable cozy spacious lively vibrant serene tranquil potential possible certain particular specific similar
only elderly younger older nearby wooden metallic
"""
"""Determiners, numbers, pronouns, prepositions, auxiliaries, colours and adjectives of captions."""
_NOT_NOUNS = frozenset(_OTHER_WORDS.split())
_ADJECTIVE_ENDINGS = (
    *("iful", "eful", "ous", "ive", "less", "ish", "able", "ible", "ical", "ional", "ular", "iest", "esque"),
    *("ed", "ing", "looking", "like", "-sized"),
)
_NOUNS_IN_ING = frozenset(
    {"building", "ceiling", "clothing", "painting", "wing", "ring", "string", "king", "railing", "awning", "thing"}
    | {"swing", "earring", "crossing", "lighting", "landing", "icing", "stuffing", "topping", "dressing", "wedding"}
    | {"bed", "shed", "sled", "seed", "weed", "feed", "reed", "bread", "living", "dining", "swimming", "parking"}
    | {"washing", "steering", "cutting", "serving", "shopping", "training", "surfing", "skiing", "seating", "bedding"}
)


def parse_list(reply: str) -> list[str]:
    """The strings of an extractor's reply: the reply as JSON, or its last line.

    As in the original, the last line is tried only if the reply contains ``["``.

    Raises:
        ReplyError: neither is a list of strings.
    """
    texts = [reply, *FENCE.findall(reply), *(reply.strip().split("\n")[-1:] if '["' in reply else [])]
    for text in texts:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return value
    raise ReplyError("the reply is not a JSON list of strings")


def objects_in(phrases: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """The different objects of phrases, in order, before they are looked up in the vocabulary.

    A phrase with pairs of words of the vocabulary yields only these; any other yields its runs of nouns.
    """
    found: dict[str, None] = {}
    for phrase in phrases:
        found.update(dict.fromkeys(_objects_in_phrase(phrase, vocabulary)))
    return list(found)


def _objects_in_phrase(phrase: str, vocabulary: Vocabulary) -> list[str]:
    tokens = tokenize(phrase)
    lemmas = [_lemma(token) for token in tokens]
    merged = vocabulary.merge(lemmas)
    pairs = [word for word, index in merged if " ".join(lemmas[index : index + 2]) in vocabulary.pairs]
    return pairs or _noun_runs(tokens, lemmas)


def _noun_runs(tokens: Sequence[str], lemmas: Sequence[str]) -> list[str]:
    runs: list[list[str]] = [[]]
    for number, (token, lemma) in enumerate(zip(tokens, lemmas, strict=True)):
        is_last = number + 1 == len(tokens)
        if _is_noun(token, is_last=is_last):
            runs[-1].append(lemma)
        elif runs[-1]:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def _is_noun(token: str, *, is_last: bool) -> bool:
    if not _WORD.match(token) or token in _NOT_NOUNS or token.startswith("'"):
        return False
    return is_last or token in _NOUNS_IN_ING or not token.endswith(_ADJECTIVE_ENDINGS)


def _lemma(token: str) -> str:
    """The singular of a noun."""
    if token in _IRREGULAR:
        return _IRREGULAR[token]
    for plural in ("men", "people"):
        if token.endswith(plural) and token != plural:
            return token.removesuffix(plural) + _IRREGULAR[plural]
    for ending, replacement in _ENDINGS:
        if token.endswith(ending) and (replacement or len(token) > 2):
            return token.removesuffix(ending) + replacement
    return token
