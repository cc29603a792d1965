"""Nouns of an answer, and similarities of nouns, as AMBER finds them, with and without its libraries.

AMBER uses NLTK's tokenizer, tagger and WordNet lemmas, and the vectors of spaCy's ``en_core_web_lg``. Neither is a
dependency: without them, a rule takes every word of the vocabulary for a noun, and no similarities are computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from jsfree.errors import ConfigError, SourceError
from jsfree.evaluation.benchmarks.nouns import NounLemmas
from jsfree.evaluation.benchmarks.tokens import tokenize

Nouns = Callable[[str], list[str]]
"""Maps a text to the base forms of its nouns, in order, repeats kept."""
Similarity = Callable[[str, str], float]
"""Cosine of the vectors of two words or phrases; 0 without a vector."""
CAPITALISED = re.compile(r"\w*[A-Z]\w*")


def rule_nouns(vocabulary: Collection[str]) -> Nouns:
    """Takes the words of ``vocabulary``, singular or plural, for nouns.

    Words with a capital letter are left out: the vocabulary of AMBER is in lower case, and its code compares exactly.
    """
    lemma = NounLemmas([word for word in vocabulary if " " not in word])
    return lambda text: [lemma(token) for token in tokenize(CAPITALISED.sub("Xx", text))]


def nltk_nouns(text: str) -> list[str]:
    """Nouns by NLTK, as AMBER's code.

    Raises:
        ConfigError: NLTK or its data are not installed.
    """
    try:
        import nltk  # type: ignore[import-not-found, unused-ignore]
        from nltk.stem import WordNetLemmatizer  # type: ignore[import-not-found, unused-ignore]

        lemmatizer = WordNetLemmatizer()
        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        return [str(lemmatizer.lemmatize(word)) for word, tag in tagged if tag.startswith("NN")]
    except (ImportError, LookupError) as error:
        raise ConfigError(
            f"NLTK cannot find nouns: {str(error).strip().splitlines()[0]}",
            "pip install nltk; python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet",
        ) from error


def noun_finder(kind: Literal["rule", "nltk"], vocabulary: Collection[str]) -> Nouns:
    """The nouns of a text by the rule or by NLTK."""
    return nltk_nouns if kind == "nltk" else rule_nouns(vocabulary)


def load_similarity(vectors: str) -> Similarity:
    """Similarities by word vectors.

    Args:
        vectors: name of a spaCy model, such as ``en_core_web_lg``, or path of a text file with a word and its numbers a
            line, as GloVe's.

    Raises:
        ConfigError: spaCy or the model is not installed.
        SourceError: the file is wrong.
    """
    if Path(vectors).is_file():
        return cache(_file_similarity(Path(vectors)))
    try:
        import spacy  # type: ignore[import-not-found, unused-ignore]

        model = spacy.load(vectors)
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"the vectors {vectors!r} cannot be loaded: {error}",
            f"pip install spacy; python -m spacy download {vectors}; or name a file of vectors",
        ) from error
    return cache(lambda one, other: float(model(one).similarity(model(other))))


def _file_similarity(path: Path) -> Similarity:
    vectors: dict[str, np.ndarray] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            word, *values = line.rstrip().split(" ")
            try:
                vectors[word] = np.array(values, np.float64)
            except ValueError:
                raise SourceError(f"{path}, line {number}: not a word and numbers", "use GloVe's format") from None
    if len({len(vector) for vector in vectors.values()}) != 1:
        raise SourceError(f"{path}: the vectors have different lengths", "download the file again")
    nothing = np.zeros(len(next(iter(vectors.values()))))

    def similarity(one: str, other: str) -> float:
        if one == other:
            return 1.0
        first, second = (np.mean([vectors.get(word, nothing) for word in text.split()], 0) for text in (one, other))
        norm = float(np.linalg.norm(first) * np.linalg.norm(second))
        return float(first @ second) / norm if norm else 0.0

    return similarity
