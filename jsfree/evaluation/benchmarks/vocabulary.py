"""The object words of CHAIR and Object HalBench: categories with their synonyms, and the mentions of them in a text.

    tokens -> base forms -> pairs of words merged -> words of the vocabulary -> categories

One left-to-right pass merges pairs ("stop sign"). Repeated mentions are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

from jsfree.errors import SourceError

BUILT_IN = "built-in"
SEPARATOR = ", "
_PHRASES = (
    *("motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light"),
    *("fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove"),
    *("tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier"),
    *("potted plant", "laptop computer", "home plate", "train track"),
)
"""Pairs of words that are merged into one; the last two belong to no category and so hide "train" and "plate"."""
_ANIMALS = (*("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"),)
_PAIRS = (
    {phrase: phrase for phrase in _PHRASES}
    | {f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS}
    | {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
    | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
)
COCO_CATEGORIES = frozenset(
    {
        *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
        *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
        *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
        *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
        *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
        *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
        *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard"),
        *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors"),
        *("teddy bear", "hair drier", "toothbrush"),
    }
)


@dataclass(frozen=True)
class Mention:
    """An object word in a text: ``index`` is that of its token, or of the first of two."""

    word: str
    category: str
    index: int


@dataclass(frozen=True)
class Reading:
    """What was found in a text: its mentions, and its words after the merging of pairs."""

    mentions: tuple[Mention, ...]
    words: tuple[str, ...]

    @property
    def categories(self) -> set[str]:
        """The categories that the text names."""
        return {mention.category for mention in self.mentions}


@dataclass(frozen=True)
class Vocabulary:
    """Categories with their words, the category's own name first.

    Args:
        name: the file, or ``built-in``.
        synonyms: words by category.
        all_phrases: whether all entries of two words are merged in texts, as Object HalBench does. CHAIR merges a fixed
            list, and here also those of categories that COCO does not have.
    """

    name: str
    synonyms: Mapping[str, tuple[str, ...]]
    all_phrases: bool = False

    @cached_property
    def categories_by_word(self) -> dict[str, str]:
        """The category of each word; of the last category that has it."""
        return {word: category for category, words in self.synonyms.items() for word in words}

    @cached_property
    def pairs(self) -> dict[str, str]:
        """Pairs of words, and what each is replaced with."""
        own = {
            word: word
            for category, words in self.synonyms.items()
            for word in words
            if " " in word.strip() and (self.all_phrases or category not in COCO_CATEGORIES)
        }
        return own | _PAIRS

    @cached_property
    def single_words(self) -> frozenset[str]:
        """Every single word of categories and pairs, in lower case."""
        phrases = (*self.categories_by_word, *self.pairs, *self.pairs.values())
        return frozenset(word for phrase in phrases for word in phrase.lower().split())

    @property
    def fingerprint(self) -> str:
        """Hash of the categories and their words."""
        lines = (SEPARATOR.join((category, *words)) for category, words in self.synonyms.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def read(self, words: Sequence[str]) -> Reading:
        """Find the mentions in the words of a text, which are in their base forms."""
        merged = self.merge(words)
        kept = drop_toilet_seats(merged)
        mentions = (
            Mention(word, self.categories_by_word[word], index)
            for word, index in kept
            if word in self.categories_by_word
        )
        return Reading(tuple(mentions), tuple(word for word, _ in merged))

    def merge(self, words: Sequence[str]) -> list[tuple[str, int]]:
        """Replace pairs from left to right; each word of the result has the index of its first token."""
        merged, index = [], 0
        while index < len(words):
            pair = self.pairs.get(" ".join(words[index : index + 2])) if index + 1 < len(words) else None
            merged.append((words[index] if pair is None else pair, index))
            index += 1 if pair is None else 2
        return merged


def drop_toilet_seats(words: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Remove "seat" from words that include "toilet": it is not a chair."""
    has_toilet = any(word == "toilet" for word, _ in words)
    return [(word, index) for word, index in words if not (has_toilet and word == "seat")]


def built_in() -> Vocabulary:
    """The vocabulary that comes with jsfree: COCO's 80 categories with synonyms of our own."""
    text = (resources.files("jsfree.evaluation.benchmarks") / "coco_objects.txt").read_text(encoding="utf-8")
    return _parse(text, BUILT_IN)


def load(path: str | Path | None, *, all_phrases: bool = False) -> Vocabulary:
    """Read a vocabulary in the format of CHAIR's ``synonyms.txt``; without a path, the built-in one.

    A line is a category: its name and its synonyms, separated by a comma and a blank. As in the original, an entry
    after two blanks keeps one and never matches.

    Raises:
        SourceError: the file cannot be read, or a line is wrong.
    """
    if path is None:
        vocabulary = built_in()
    else:
        try:
            vocabulary = _parse(Path(path).read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"the vocabulary {path} cannot be read: {error}", "name a text file") from error
    return Vocabulary(vocabulary.name, vocabulary.synonyms, all_phrases)


def _parse(text: str, name: str) -> Vocabulary:
    synonyms: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        category, *others = line.strip().split(SEPARATOR)
        if category in synonyms:
            raise SourceError(f"{name}, line {number}: the category {category!r} occurs twice", "join its lines")
        synonyms[category] = (category, *others)
    if not synonyms:
        raise SourceError(f"the vocabulary {name} has no category", "write one category a line: name, synonym, ...")
    return Vocabulary(name, synonyms)
