"""Splits captions into sentences, and sentences that are too long for CLIP into sub-sentences (paper, section 3.4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

# "-", "*", "1.", "2)", "(3)", "#" at the start of a line.
_LIST_MARKER = re.compile(r"^\s*(?:[-*+•–—]|#{1,6}|\(?\d{1,3}[.)])(?=\s|$)\s*")
# A full stop between blanks ("a dog . 3 cats ."), as in tokenized captions.
_LONE_STOP = re.compile(r"(?<=\s[.!?])\s+")
# Characters of scripts without blanks between words (kana, Han, Thai and related ones) count as words.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['’][^\W{_UNSPACED}]+)*")
_PRONOUNS = frozenset({"it", "its", "they", "their", "them", "he", "his", "him", "she", "her", "hers"})
# Split points in order of preference: after punctuation, before conjunctions, between words, between characters.
_SPLIT_POINTS = (
    re.compile(r"(?<=[;:,])\s+|(?<=[；：，、])"),
    re.compile(r"\s+(?=(?:and|with|while|but|or|where|which|that)\s)", re.IGNORECASE),
    re.compile(r"\s+"),
    re.compile(r"(?<=.)(?=.)", re.DOTALL),
)


def sentences(text: str) -> list[str]:
    """Split a caption into sentences without surrounding white space.

    A line break, or a full stop between blanks, ends a sentence. List markers and pieces without a letter or digit are
    removed.
    """
    import sentencex

    result: list[str] = []
    for line in text.splitlines():
        for part in _LONE_STOP.split(_LIST_MARKER.sub("", line)):
            pieces = (_LIST_MARKER.sub("", piece).strip() for piece in sentencex.segment("en", part))
            result.extend(piece for piece in pieces if _has_letter_or_digit(piece))
    return result


def words(text: str) -> list[str]:
    """Split a text into words, case-folded and without punctuation."""
    return [word for word, _, _ in word_spans(text)]


def word_spans(text: str) -> list[tuple[str, int, int]]:
    """The words of a text as in ``words``, each with its start and end in characters."""
    return [(match.group().casefold(), match.start(), match.end()) for match in _WORD.finditer(text)]


def refers_back(sentence: str) -> bool:
    """Whether a sentence begins with an English pronoun, so that it is only understood after the one before it."""
    return next(iter(words(sentence)), "") in _PRONOUNS


def count_repeated(sentences: Sequence[str]) -> int:
    """Number of sentences whose words are equal to those of an earlier sentence."""
    return len(sentences) - len({tuple(words(sentence)) for sentence in sentences})


def sub_sentences(sentence: str, fits: Callable[[str], bool]) -> list[str]:
    """Split a sentence into pieces that fit the text context, each as long as possible.

    Split points are, in order of preference, after ``;``, ``:`` and ``,``, before conjunctions such as "and" and
    "with", between words, and between characters. A single character that does not fit is returned unchanged. Only
    white space at split points, and pieces without a letter or digit, are removed.

    Args:
        sentence: one sentence; returned unchanged if it fits.
        fits: whether a text fits (for CLIP: its tokens, including start and end, do not exceed the context length).
    """
    return [piece for piece in _split(sentence.strip(), fits, _SPLIT_POINTS) if _has_letter_or_digit(piece)]


def _split(text: str, fits: Callable[[str], bool], split_points: Sequence[re.Pattern[str]]) -> list[str]:
    if not split_points or fits(text):
        return [text]
    preferred, *others = split_points
    return [piece for packed in _pack(text, fits, preferred) for piece in _split(packed, fits, others)]


def _pack(text: str, fits: Callable[[str], bool], split_point: re.Pattern[str]) -> list[str]:
    """Split at matches of ``split_point`` into the longest pieces that fit; a piece without a match may not fit."""
    pieces: list[str] = []
    start = last = 0
    for end in [*(match.end() for match in split_point.finditer(text)), len(text)]:
        if last > start and not fits(text[start:end].strip()):
            pieces.append(text[start:last].strip())
            start = last
        last = end
    return [*pieces, text[start:].strip()]


def _has_letter_or_digit(text: str) -> bool:
    return any(character.isalnum() for character in text)
