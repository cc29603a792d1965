"""Generates POPE's questions from the annotated objects of images, as arXiv 2305.10355 (section 4) describes.

The random draws differ from those of the published files, which cannot be reproduced from the annotations alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

from jsfree.errors import ConfigError
from jsfree.evaluation.benchmarks.pope import Kind

TEMPLATE = "Is there a {} in the image?"
VOWELS = "aeiou"


def generate_questions(
    objects: Mapping[str, Collection[str]],
    kind: Kind,
    *,
    images: int = 500,
    pairs: int = 3,
    seed: int = 0,
    repaired: bool = True,
) -> list[dict[str, Any]]:
    """Ask for present and absent objects in turn.

    Args:
        objects: names of the annotated categories by image file.
        images: number of images, drawn from those with at least ``pairs`` categories.
        pairs: number of present objects of an image, and of absent ones.
        repaired: write "an" before vowels. False: as the original, whose rule also changes "image" to "imange".

    Returns:
        Records of POPE's files: ``question_id`` from 1, ``image``, ``text`` and ``label``.

    Raises:
        ConfigError: there are fewer images, or an image has nearly all categories.
    """
    candidates = sorted(image for image, names in objects.items() if len(set(names)) >= pairs)
    if len(candidates) < images:
        raise ConfigError(
            f"{len(candidates)} images have {pairs} or more annotated categories, not {images}", "ask for fewer images"
        )
    rng = random.Random(seed)
    absent = _AbsentObjects(objects, kind, rng)
    records: list[dict[str, Any]] = []
    for image in rng.sample(candidates, images):
        present = rng.sample(sorted(set(objects[image])), pairs)
        for name, label in _pairs(image, present, absent):
            text = question_text(name, repaired=repaired)
            records.append({"question_id": len(records) + 1, "image": image, "text": text, "label": label})
    return records


def question_text(name: str, *, repaired: bool = True) -> str:
    """The question for an object, with the article of a repaired file or of the original generator."""
    if name[0].lower() not in VOWELS:
        return TEMPLATE.format(name)
    template = TEMPLATE.replace(" a ", " an ") if repaired else TEMPLATE.replace("a", "an")
    return template.format(name)


def _pairs(image: str, present: Sequence[str], absent: _AbsentObjects) -> Iterator[tuple[str, str]]:
    asked: set[str] = set()
    for name in present:
        yield name, "yes"
        other = absent.choose(image, name, asked)
        asked.add(other)
        yield other, "no"


class _AbsentObjects:
    """Chooses objects that an image does not have; ties are broken by name."""

    def __init__(self, objects: Mapping[str, Collection[str]], kind: Kind, rng: random.Random) -> None:
        self.objects, self.kind, self.rng = objects, kind, rng
        self.frequency = Counter(name for names in objects.values() for name in set(names))
        self.together = Counter(pair for names in objects.values() for pair in permutations(set(names), 2))

    def choose(self, image: str, present: str, asked: Collection[str]) -> str:
        """An absent object that was not asked for: any, the most frequent one, or the one most often with ``present``.

        Raises:
            ConfigError: there is none.
        """
        choices = sorted(self.frequency.keys() - set(self.objects[image]) - set(asked))
        if not choices:
            raise ConfigError(f"{image} has all annotated categories but {len(asked)}", "leave the image out")
        if self.kind == "random":
            return self.rng.choice(choices)
        if self.kind == "popular":
            return max(choices, key=lambda name: self.frequency[name])
        return max(choices, key=lambda name: self.together[present, name])
