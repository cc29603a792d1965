"""Captions of MiniWorld's scenes in varied prose: the world ``prose``.

The images are those of ``world.py``. A sentence names up to three objects by any of their nouns, states relations,
omits some attributes, or continues about the previous object ("It is red."). Some sentences state nothing. Positions
and relations follow from the boxes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from jsfree.miniworld import wording
from jsfree.miniworld.vocabulary import COLOURS, CONTEXTS, OBJECTS
from jsfree.miniworld.world import CaptionNoise, Scene, SceneObject, noisy_mentions, pick

SENTENCE_SIZES = (1, 1, 1, 1, 2, 2, 2, 3, 3)
"""Numbers of objects of a sentence, drawn uniformly."""
CANONICAL = 0.6
"""Probability that an object with synonyms is named by its usual noun."""
WITHOUT_COLOUR = 0.3
RELATED = 0.6
"""Probability that a sentence about several objects states a relation, if the first two have one."""
CONTINUED = 0.35
"""Probability that a sentence about one object is followed by one about the same object."""
FILLED = 0.15
"""Probability that a caption contains a sentence that states nothing."""
NOISE = CaptionNoise(padded=(1.0, 1.0, 0.97, 0.75, 0.20))
"""Errors of the captions for pre-training. More captions are padded than in the plain world: many words can begin the
next sentence, so that greedy decoding, which compares each of them with the end, would end before it hallucinates."""
NEAR, APART = 26.0, 10.0
"""Objects are near each other up to the distance ``NEAR`` of their centres; one is above, below or beside the other if
the centres are at least ``APART`` apart in that direction and less in the other. In pixels."""


@dataclass(frozen=True)
class Claim:
    """A statement that an object is present, with a colour if given; ``name`` is None if only "it" is named."""

    name: str | None
    colour: str | None = None


@dataclass(frozen=True)
class Sentence:
    """A sentence with what it states: a context, objects, and positions or relations (``has_layout``)."""

    text: str
    context: str | None = None
    claims: tuple[Claim, ...] = ()
    has_layout: bool = False


def true_caption(scene: Scene, rng: random.Random) -> str:
    """A caption of all objects of ``scene`` in a random wording."""
    return _joined(describe(scene.context, sorted(scene.objects, key=lambda _: rng.random()), rng))


def noisy_caption(scene: Scene, rng: random.Random, noise: CaptionNoise | None = None) -> str:
    """A caption with random errors, as ``world.noisy_caption``: the target of the captioner's pre-training."""
    return _joined(describe(scene.context, noisy_mentions(scene, rng, noise or NOISE), rng))


def describe(context: str, mentions: Sequence[SceneObject], rng: random.Random) -> list[Sentence]:
    """Draw the sentences of a caption that mentions each of ``mentions`` once, in the given order."""
    sentences = [context_sentence(context, rng)]
    start = 0
    while start < len(mentions):
        size = min(pick(SENTENCE_SIZES, rng), len(mentions) - start)
        group, start = mentions[start : start + size], start + size
        sentence = object_sentence(group, rng)
        sentences.append(sentence)
        if size == 1 and rng.random() < CONTINUED:
            following = mentions[start] if start < len(mentions) else None
            continuation = _continuation(group[0], sentence, following, rng)
            sentences += continuation
            start += sum(claim.name is not None for added in continuation for claim in added.claims)
    if rng.random() < FILLED:
        place = 1 + int(rng.random() * len(sentences))
        # A filler must not separate a pronoun from its object.
        while place < len(sentences) and sentences[place].text.startswith("It"):
            place += 1
        sentences.insert(place, Sentence(pick(wording.FILLERS, rng)))
    return sentences


def context_sentence(context: str, rng: random.Random) -> Sentence:
    """A sentence that states the context."""
    text = pick(wording.CONTEXT_TEMPLATES, rng).format(context=context, preposition=_preposition(context))
    return Sentence(text, context)


def object_sentence(group: Sequence[SceneObject], rng: random.Random) -> Sentence:
    """A sentence about one to three objects."""
    related = len(group) > 1 and relations(group[0], group[1]) and rng.random() < RELATED
    templates = {
        (1, False): wording.ONE_OBJECT_TEMPLATES,
        (2, False): wording.TWO_OBJECT_TEMPLATES,
        (2, True): wording.RELATED_TEMPLATES,
        (3, False): wording.THREE_OBJECT_TEMPLATES,
        (3, True): wording.RELATED_THREE_TEMPLATES,
    }
    return _written(pick(templates[len(group), bool(related)], rng), group, rng)


def relations(first: SceneObject, second: SceneObject) -> tuple[str, ...]:
    """The relations of ``first`` to ``second``, keys of ``wording.RELATION_WORDINGS``."""
    across, down = ((first.box[i] + first.box[i + 2] - second.box[i] - second.box[i + 2]) / 2 for i in (0, 1))
    found = ["near"] if (across**2 + down**2) ** 0.5 <= NEAR else []
    if abs(down) >= APART > abs(across):
        found.append("above" if down < 0 else "below")
    if abs(across) >= APART > abs(down):
        found.append("left" if across < 0 else "right")
    return tuple(found)


def all_words() -> tuple[str, ...]:
    """Every word and mark of the captions, as it is written within a sentence and, if it can be, at its start."""
    templates = [text for name, table in vars(wording).items() if name.endswith("_TEMPLATES") for text in table]
    positions = [text for wordings in wording.POSITION_WORDINGS.values() for text in wordings]
    starts = [*templates, *wording.FILLERS, *positions, "a", "an"]
    nouns = [noun for synonyms in wording.SYNONYMS.values() for noun in synonyms]
    phrases = [text for wordings in wording.RELATION_WORDINGS.values() for text in wordings]
    others = [*phrases, *nouns, *CONTEXTS, *OBJECTS, *COLOURS, "in", *wording.CONTEXT_PREPOSITIONS.values()]
    words = {word for text in (*starts, *others) for word in _plain_words(text)}
    return (*sorted(words | {_capitalised(text.split()[0]) for text in starts if text[0] != "{"}), ",", ".")


def _continuation(
    item: SceneObject, stated: Sentence, following: SceneObject | None, rng: random.Random
) -> list[Sentence]:
    """A sentence that states of "it" what ``stated`` does not, perhaps its relation to ``following``; or none."""
    templates: list[Sequence[str]] = []
    if stated.claims[0].colour is None:
        templates.append(wording.COLOUR_TEMPLATES)
    if not stated.has_layout:
        templates.append(wording.POSITION_TEMPLATES)
    if following is not None and relations(item, following):
        templates.append(wording.RELATION_TEMPLATES)
    if not templates:
        return []
    group = (item,) if following is None else (item, following)
    return [_written(pick(pick(templates, rng), rng), group, rng)]


def _written(template: str, group: Sequence[SceneObject], rng: random.Random) -> Sentence:
    """Fill the slots of ``template`` with the objects a, b and c of ``group``."""
    slots = {slot for _, slot, *_ in Formatter().parse(template) if slot}
    values: dict[str, str] = {}
    claims: list[Claim] = []
    for letter, item in zip("abc", group, strict=False):
        values[f"at_{letter}"] = pick(wording.POSITION_WORDINGS[item.position], rng)
        if letter in slots:
            claim = Claim(item.name, None if rng.random() < WITHOUT_COLOUR else item.colour)
            claims.append(claim)
            values[letter] = _noun_phrase(claim, rng)
    if "colour" in slots:
        values["colour"] = group[0].colour
        claims.append(Claim(None, group[0].colour))
    if "relation" in slots:
        values["relation"] = pick(wording.RELATION_WORDINGS[pick(relations(group[0], group[1]), rng)], rng)
    has_layout = any(slot == "relation" or slot.startswith("at_") for slot in slots)
    return Sentence(_capitalised(template.format(**values)), None, tuple(claims), has_layout)


def _noun_phrase(claim: Claim, rng: random.Random) -> str:
    name = claim.name or ""
    synonyms = wording.SYNONYMS.get(name, ())
    noun = pick(synonyms, rng) if synonyms and rng.random() >= CANONICAL else name
    words = f"{claim.colour} {noun}" if claim.colour else noun
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plain_words(template: str) -> list[str]:
    return [word for word in template.replace(",", " ").replace(".", " ").split() if word[0] != "{"]


def _preposition(context: str) -> str:
    return wording.CONTEXT_PREPOSITIONS.get(context, "in")


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _joined(sentences: Sequence[Sentence]) -> str:
    return " ".join(sentence.text for sentence in sentences)
