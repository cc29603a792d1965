"""Words of captions in their base form: two ways in which published evaluations recognise plurals.

``singular`` reproduces what the rule-based singulariser of the original CHAIR code returns, including its faults
("bus" loses its s). ``NounLemmas`` reproduces the noun lemmas of WordNet for words of a known vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

_UNCHANGED = frozenset({"is", "as", "ss"})
_UNCHANGED_ENDINGS = (
    *("bison", "bream", "breeches", "britches", "carp", "chassis", "christmas", "clippers", "cod", "contretemps"),
    *("corps", "debris", "diabetes", "djinn", "eland", "elk", "flounder", "gallows", "georgia", "graffiti"),
    *("headquarters", "herpes", "homework", "innings", "jackanapes", "mackerel", "measles", "mews", "mumps", "news"),
    *("pincers", "pliers", "proceedings", "rabies", "salmon", "scissors", "series", "shears", "species", "swine"),
    *("swiss", "trout", "tuna", "whiting", "wildebeest", "bread", "butter", "cheese", "equipment", "fruit"),
    *("furniture", "ketchup", "luggage", "mathematics", "mayonnaise", "meat", "mustard", "rice", "sand", "water"),
    *("progress", "advice", "garbage", "gravel", "knowledge", "software"),
)
"""Endings of words that have no singular of their own."""
_UNCHANGED_PLURALS = tuple(
    f"{word}s"
    for word in (
        *("auntie", "beanie", "birdie", "bogie", "bookie", "collie", "cookie", "cutie", "doggie", "eyrie"),
        *("freebie", "groupie", "hankie", "hippie", "hoagie", "hottie", "indie", "junkie", "laddie", "lingerie"),
        *("meanie", "nightie", "oldie", "pixie", "quickie", "reverie", "rookie", "softie", "sortie", "sweetie"),
        *("techie", "toughie", "valkyrie", "veggie", "weenie", "yuppie", "zombie"),
    )
)
"""Plurals in -ies of words in -ie, which the original leaves as they are."""
_IRREGULAR_ENDINGS = {
    "men": "man",
    "people": "person",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "lice": "louse",
    "oxen": "ox",
    "corpora": "corpus",
    "genera": "genus",
    "brethren": "brother",
    "kine": "cow",
}
_SUFFIXES = (
    ("ae", "a"),
    ("eaux", "eau"),
    ("quizzes", "quiz"),
    ("matrices", "matrix"),
    ("vertices", "vertex"),
    ("indices", "index"),
    ("aliases", "alias"),
    ("statuses", "status"),
    ("crises", "crisis"),
    ("axes", "axe"),
    ("shoes", "shoe"),
    ("oes", "o"),
    ("buses", "bus"),
    ("xes", "x"),
    ("ches", "ch"),
    ("sses", "ss"),
    ("shes", "sh"),
    ("movies", "movie"),
    ("ies", "y"),
    ("serves", "serve"),
    ("lves", "lf"),
    ("rves", "rf"),
    ("eaves", "eaf"),
    ("oaves", "oaf"),
    ("tives", "tive"),
    ("hives", "hive"),
    ("ives", "ife"),
    ("bases", "basis"),
    ("ti", "tus"),
    ("ri", "rus"),
    ("pi", "pus"),
    ("ci", "cus"),
    ("vi", "vus"),
    ("oi", "ous"),
    ("ta", "tum"),
    ("ia", "ium"),
    ("itis", "itis"),
    ("s", ""),
)
"""The first ending that a word has is replaced."""


def singular(word: str) -> str:
    """The singular of a lower-case word, as the original CHAIR code computes it (``pattern.en.singularize``).

    Every word is taken for a noun. Words in -s that are not plurals lose it ("bus", "tennis", "glass"), and some
    plurals are not recognised ("ties" becomes "ty", "thieves" "thieve").
    """
    if word in _UNCHANGED:
        return word
    if word.endswith("'"):
        return singular(word[:-1]) + "'s"
    if word.endswith(_UNCHANGED_ENDINGS) or word.endswith(_UNCHANGED_PLURALS):
        return word
    for ending, replacement in _IRREGULAR_ENDINGS.items():
        if word.endswith(ending):
            return word.removesuffix(ending) + replacement
    for ending, replacement in _SUFFIXES:
        if word.endswith(ending):
            return word.removesuffix(ending) + replacement
    return word


_NOT_IN_WORDNET = frozenset(
    {
        *("biker", "bluejay", "brindle", "coworker", "firetruck", "hairdryer", "iphone", "lenovo", "longboard"),
        *("macbook", "netbook", "paddleboat", "pitbull", "riverboat", "sailboard", "shortboard", "skimboard"),
        *("smartphone", "solider", "stovetop", "teddybear", "televison"),
    }
)
"""Object words that WordNet 3.0 lacks, so that their plurals have no lemma."""
_LEMMAS = {
    "brethren": "brother",
    "busses": "bus",
    "buffaloes": "buffalo",
    "calves": "calf",
    "children": "child",
    "doggies": "doggy",
    "flamingoes": "flamingo",
    "geese": "goose",
    "grandchildren": "grandchild",
    "knives": "knife",
    "men": "men",
    "mice": "mouse",
    "oxen": "ox",
    "people": "people",
    "pocketknives": "pocketknife",
    "skies": "sky",
    "skis": "ski",
    "sports": "sport",
    "taxies": "taxi",
    "thieves": "thief",
    "vases": "vas",
}
"""Exceptions of WordNet, and words that are lemmas themselves ("men") or have a shorter one than expected ("vas")."""
_DETACHMENTS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)


class NounLemmas:
    """Noun lemmas of WordNet (``WordNetLemmatizer`` of NLTK) for words of a vocabulary.

    A word whose lemma is not in the vocabulary is returned unchanged, which does not matter to a search for words of
    the vocabulary. So no dictionary is needed: the words of the vocabulary are taken for nouns of WordNet, except for
    those that are known to be missing.

    Args:
        words: single words of the vocabulary, in lower case.
    """

    def __init__(self, words: Collection[str]) -> None:
        self._nouns = frozenset(words) - _NOT_IN_WORDNET

    def __call__(self, word: str) -> str:
        """The lemma of a lower-case word: the shortest of its possible base forms."""
        if word in _LEMMAS:
            return _LEMMAS[word]
        forms = [word.removesuffix(ending) + base for ending, base in _DETACHMENTS if word.endswith(ending)]
        return min((form for form in [word, *forms] if form in self._nouns), key=len, default=word)


_VERBS = frozenset(
    {"ski", "skate", "skateboard", "snowboard", "surfboard", "seat", "tie", "bike", "kayak", "canoe", "duck", "train"}
)
"""Object words that captions use as verbs."""
_BEFORE_VERBS = frozenset(
    {"a", "the", "is", "are", "was", "were", "be", "been", "while", "in", "from", "at", "for", "of", "by", "and", "or"}
)
"""Words after which a form in -ing is taken for a verb; after adjectives, possessives and nouns it is a noun."""


class CaptionLemmas:
    """Lemmas of the words of a caption as those of the ports of CHAIR, which ask a tagger for parts of speech.

    Instead of a tagger, a rule recognises forms of the verbs that are object words ("is skiing", "seated"). Everything
    else is taken for a noun, whose lemma differs from that of a verb only outside the vocabulary.
    """

    def __init__(self, words: Collection[str]) -> None:
        self._noun = NounLemmas(words)
        self._verbs = _VERBS & frozenset(words)

    def __call__(self, words: Sequence[str]) -> list[str]:
        """The lemmas of the lower-case words of a caption."""
        before = ("", *words[:-1])
        return [self._verb(word, previous) or self._noun(word) for word, previous in zip(words, before, strict=True)]

    def _verb(self, word: str, previous: str) -> str | None:
        """The verb of which a word is a form; None if it is none that counts as an object."""
        if word.endswith("ed"):
            stem = word.removesuffix("ed")
        elif word.endswith("ing") and ((previous in _BEFORE_VERBS and word != "seating") or word == "tying"):
            stem = word.removesuffix("ing")
        else:
            return None
        as_ie = stem[:-1] + "ie" if stem.endswith("y") else stem
        return next((form for form in (stem, stem + "e", as_ie) if form in self._verbs), None)
