"""Cuts a caption into sentences, and a sentence that is too long for CLIP into sub-sentences (paper, section 3.4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

# "-", "*", "1.", "2)", "(3)", "#" at the start of a line.
_LIST_MARKER = re.compile(r"^\s*(?:[-*+•–—]|#{1,6}|\(?\d{1,3}[.)])(?=\s|$)\s*")
# A full stop that stands alone ("a dog . 3 cats ."), as tokenised captions write it.
_LONE_STOP = re.compile(r"(?<=\s[.!?])\s+")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
# Where a sentence may be cut, best first: clauses, clauses by their first word, words, characters.
_CUTS = (
    re.compile(r"(?<=[;:,])\s+|(?<=[；：，、])"),
    re.compile(r"\s+(?=(?:and|with|while|but|or|where|which|that)\s)", re.IGNORECASE),
    re.compile(r"\s+"),
    re.compile(r"(?<=.)(?=.)", re.DOTALL),
)


def sentences(text: str) -> list[str]:
    """The sentences of a caption, stripped, in order.

    A line's end, or a full stop that stands alone, ends a sentence. List markers are removed, and what holds no
    letter or digit is no sentence. Empty text has none.
    """
    import sentencex

    found: list[str] = []
    for line in text.splitlines():
        for part in _LONE_STOP.split(_LIST_MARKER.sub("", line)):
            pieces = (_LIST_MARKER.sub("", piece).strip() for piece in sentencex.segment("en", part))
            found.extend(piece for piece in pieces if _says_something(piece))
    return found


def words(text: str) -> list[str]:
    """The words of a text, without regard to case and punctuation."""
    return _WORD.findall(text.casefold())


def repeated(sentences: Sequence[str]) -> int:
    """How many of the sentences say again, word for word, what one before has said."""
    said = {tuple(words(sentence)) for sentence in sentences}
    return len(sentences) - len(said)


def sub_sentences(sentence: str, fits: Callable[[str], bool]) -> list[str]:
    """Cut a sentence into pieces that fit the text context, each as long as it can be.

    It is cut after ``;``, ``:`` and ``,``; a clause that is still too long before "and", "with" and the like;
    what is left between words; a single word that does not fit between characters. A single character that does
    not fit is returned as it is. No text is lost but blanks at the cuts and pieces without a letter or digit.

    Args:
        sentence: one sentence; returned whole if it fits.
        fits: whether a text fits (for CLIP: its tokens with both ends are at most the context length).
    """
    return [piece for piece in _cut(sentence.strip(), fits, _CUTS) if _says_something(piece)]


def _cut(text: str, fits: Callable[[str], bool], cuts: Sequence[re.Pattern[str]]) -> list[str]:
    if not cuts or fits(text):
        return [text]
    best, *others = cuts
    return [piece for packed in _packed(text, fits, best) for piece in _cut(packed, fits, others)]


def _packed(text: str, fits: Callable[[str], bool], cut: re.Pattern[str]) -> list[str]:
    """Cut at some of the matches of ``cut``, so that a piece takes in all that fits; one unit alone may not fit."""
    pieces: list[str] = []
    start = last = 0
    for end in [*(match.end() for match in cut.finditer(text)), len(text)]:
        if last > start and not fits(text[start:end].strip()):
            pieces.append(text[start:last].strip())
            start = last
        last = end
    return [*pieces, text[start:].strip()]


def _says_something(text: str) -> bool:
    return any(character.isalnum() for character in text)
