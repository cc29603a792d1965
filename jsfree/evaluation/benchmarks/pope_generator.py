"""Generates POPE's questions from the annotated objects of images, as arXiv 2305.10355 (section 4) describes.

The random draws differ from those of the published files, which cannot be reproduced from the annotations alone.

    python -m jsfree.evaluation.benchmarks.pope_generator instances_val2014.json FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from jsfree.errors import ConfigError, SourceError
from jsfree.evaluation.benchmarks.coco import read_json
from jsfree.evaluation.benchmarks.pope import KINDS, Kind

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


def objects_by_file(path: Path) -> dict[str, set[str]]:
    """Names of the annotated categories by image file, from a file of COCO instances.

    Raises:
        SourceError: the file cannot be read, or lacks a key.
    """
    content = read_json(path)
    try:
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        objects: dict[str, set[str]] = {name: set() for name in files.values()}
        for annotation in content["annotations"]:
            objects[files[annotation["image_id"]]].add(names[annotation["category_id"]])
    except (KeyError, TypeError) as error:
        raise SourceError(
            f"{path} lacks {error}", "name a file of COCO instances, such as instances_val2014.json"
        ) from error
    return objects


def write_questions(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write questions as a file of POPE, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def main() -> None:
    """Write the three files of questions for a file of COCO instances."""
    parser = argparse.ArgumentParser(description="Generate POPE's questions from COCO instances.")
    parser.add_argument("instances", type=Path, help="such as instances_val2014.json")
    parser.add_argument("folder", type=Path, help="where coco_pope_random.json, ... are written")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--original-article", action="store_true", help="repeat the original's error ('imange')")
    options = parser.parse_args()
    objects = objects_by_file(options.instances)
    for kind in KINDS:
        repaired = not options.original_article
        records = generate_questions(objects, kind, images=options.images, seed=options.seed, repaired=repaired)
        write_questions(options.folder / f"coco_pope_{kind}.json", records)


if __name__ == "__main__":
    main()
