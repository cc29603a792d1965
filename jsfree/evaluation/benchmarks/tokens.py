"""English tokens as NLTK's ``word_tokenize`` makes them: sentences by Punkt, words by the rules of the Penn Treebank.

Only what the search for objects depends on is reproduced: which characters are split off a word. "dog." loses its full
stop, "dog's" becomes two tokens, and "dog/cat", "hot-dog" and "dog.A" stay one token each. NLTK itself is not a
dependency, because it downloads its sentence model when it is used.
"""

from __future__ import annotations

import re

_ABBREVIATIONS = frozenset(
    {
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "ave",
        "jr",
        "sr",
        "vs",
        "inc",
        "co",
        "corp",
        "ltd",
        "a.m",
        "p.m",
        "u.s",
        "e.g",
    }
)
"""Words whose full stop does not end a sentence."""
_CLOSING = r"?!)\";}\]*:@'({\["
"""Characters that may follow the full stop of a sentence without a blank."""
_FINAL_STOP = re.compile(rf"(?<!\S)(\S*[^\s.])\.(?=\s|[{_CLOSING}]|$)")
_SEPARATED = (
    re.compile(r"[«»“”‘’„]"),
    re.compile(r"''|\"|``"),
    re.compile(r"[:,](?=\D|$)"),
    re.compile(r"\.\.\."),
    re.compile(r"[;@#$%&?!\[\](){}<>]"),
    re.compile(r"--"),
)
"""What becomes a token of its own wherever it occurs."""
_CLITIC = re.compile(r"(?<=[^'\s])(n't|'ll|'re|'ve|'s|'m|'d|')(?=\s|$)")
_CONTRACTED = re.compile(r"\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")


def tokenize(text: str) -> list[str]:
    """The lower-case tokens of a text, in order."""
    text = _FINAL_STOP.sub(_split_stop, text.lower())
    for pattern in _SEPARATED:
        text = pattern.sub(lambda match: f" {match.group()} ", text)
    text = _CLITIC.sub(lambda match: f" {match.group()} ", text)
    text = _CONTRACTED.sub(lambda match: " ".join(part for part in match.groups() if part), text)
    return text.split()


def _split_stop(match: re.Match[str]) -> str:
    """Split the full stop off the last word of a sentence; the text's own end is always that of a sentence."""
    is_last = not match.string[match.end() :].strip()
    word = match.group(1)
    return match.group() if word in _ABBREVIATIONS and not is_last else f"{word} . "
