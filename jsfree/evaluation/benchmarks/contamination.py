"""Images of a benchmark that the rounds of a run trained on.

They are found by the SHA-256 of their files, and by the numbers of COCO images: ``train2017/000000000042.jpg`` and
``COCO_val2014_000000000042.jpg`` are one photograph, in other files. COCO's training images of 2017 include most of the
validation images of 2014, on which CHAIR, Object HalBench and POPE ask. What the seed was trained on before is known
only from a list of its images, such as LLaVA's ``llava_v1_5_mix665k.json``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jsfree import schemas
from jsfree.errors import ConfigError
from jsfree.evaluation.benchmarks.base import Answer, Question, Suite
from jsfree.run.folder import Folder
from jsfree.run.run import Run
from jsfree.run.streaming import scan
from jsfree.schemas import ImageRef

COLUMNS = ("image.id", "image.uri", "image.sha256")
PART_BYTES = 2**24
LONGEST_NAME = 64
"""Bytes that are read again with the next part, because a name may be cut there."""
_COCO_PATH = re.compile(rb"(?:train|val|test)20\d\d[/_](\d{12})\.")
_COCO_NAME = re.compile(r"(?:^|/)(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})(?:\.\w+)?$")


def coco_number(name: str) -> int | None:
    """The number of a COCO image in a path or name such as ``coco/train2017/000000000042.jpg``; None for others."""
    match = _COCO_NAME.search(name)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class ImageKeys:
    """What identifies an image: the hash of its file, and its number in COCO; either may be unknown."""

    sha256: str | None
    coco: int | None


def keys_of(suite: Suite, questions: Iterable[Question], answers: Iterable[Answer]) -> dict[str, ImageKeys]:
    """What identifies the images of a benchmark that were read, by id.

    Args:
        answers: of a model that was asked here; the hash of each one's image is in ``extra["sha256"]``.
    """
    hashes = {answer.image_id: answer.extra.get("sha256") for answer in answers}
    images = {question.image["id"]: question.image for question in questions}
    return {name: ImageKeys(hashes[name], _number(suite, image)) for name, image in images.items() if name in hashes}


def _number(suite: Suite, image: ImageRef) -> int | None:
    if suite.has_coco_ids and image["id"].isdecimal():
        return int(image["id"])
    return _coco_number_of(image)


@dataclass(frozen=True)
class TrainedImages:
    """The images that the rounds of a run trained on.

    Args:
        rounds: number of rounds.
        hashes: of the files.
        coco: numbers of COCO images.
        unhashed: number of training images without a hash, one for each selected pair.
        lists: files with the names of further images.
    """

    rounds: int
    hashes: frozenset[str]
    coco: frozenset[int]
    unhashed: int = 0
    lists: tuple[str, ...] = ()

    def with_lists(self, paths: Sequence[str]) -> TrainedImages:
        """These images and the COCO images that are named in files of any format, read in parts.

        Raises:
            ConfigError: a file names none.
            StorageError: a file cannot be read.
        """
        numbers: set[int] = set()
        for path in paths:
            named = set(_numbers_in(path))
            if not named:
                raise ConfigError(
                    f"--trained-on {path} names no COCO image such as train2017/000000000042.jpg",
                    "name an uncompressed list of the training images",
                )
            numbers |= named
        return replace(self, coco=self.coco | numbers, lists=(*self.lists, *paths))

    @classmethod
    def of_run(cls, run: Run) -> TrainedImages:
        """The images of the selected pairs of all rounds that have trained.

        Raises:
            StorageError: a table cannot be read.
        """
        rounds = [number for number in run.rounds() if run.manifest(number, "train") is not None]
        hashes: set[str] = set()
        numbers: set[int] = set()
        unhashed = 0
        for key in (key for number in rounds for key in _image_keys(run, number)):
            if key.sha256 is None:
                unhashed += 1
            else:
                hashes.add(key.sha256)
            if key.coco is not None:
                numbers.add(key.coco)
        return cls(len(rounds), frozenset(hashes), frozenset(numbers), unhashed)

    def find(self, images: Mapping[str, ImageKeys]) -> Contamination:
        """The images of a benchmark, by their ids, that were trained on."""
        by_hash = [name for name, key in images.items() if key.sha256 in self.hashes]
        by_coco = [name for name, key in images.items() if key.coco in self.coco]
        return Contamination(self, len(images), tuple(by_hash), tuple(by_coco))


@dataclass(frozen=True)
class Contamination:
    """The images of a benchmark that were trained on, found by hash and by COCO's number."""

    trained: TrainedImages
    images: int
    by_hash: tuple[str, ...]
    by_coco: tuple[str, ...]

    @property
    def found(self) -> list[str]:
        """Ids of the images that were found in either way, in the order of the benchmark."""
        return list(dict.fromkeys((*self.by_hash, *self.by_coco)))

    def as_json(self) -> dict[str, Any]:
        """The images, as result files list them."""
        return {
            "lists": list(self.trained.lists),
            "rounds": self.trained.rounds,
            "trained_images": len(self.trained.hashes),
            "unhashed_training_images": self.trained.unhashed,
            "images": self.images,
            "by_hash": list(self.by_hash),
            "by_coco_number": list(self.by_coco),
        }

    def __str__(self) -> str:
        """A sentence for the notes of a result."""
        rounds = "1 round" if self.trained.rounds == 1 else f"{self.trained.rounds} rounds"
        rounds = " and ".join((*([rounds] if self.trained.rounds else []), *self.trained.lists))
        if not self.found:
            unknown = f"; {self.trained.unhashed} training images have no hash" if self.trained.unhashed else ""
            return f"None of the {self.images} images was trained on in {rounds} (by hash and COCO number{unknown})."
        return (
            f"{len(self.found)} of {self.images} images were trained on in {rounds} ({len(self.by_hash)} by hash,"
            f" {len(self.by_coco)} by COCO number)."
        )


def _image_keys(run: Run, number: int) -> Iterator[ImageKeys]:
    for table in scan(run.stage(number, "selected"), schemas.SAMPLES, COLUMNS):
        for row in table.to_pylist():
            image = row["image"]
            yield ImageKeys(image["sha256"], _coco_number_of(image))


def _numbers_in(path: str) -> Iterator[int]:
    """Numbers of the COCO images that a file names as paths."""
    folder, _, name = path.rpartition("/")
    rest = b""
    with Folder(folder or ".").open(name) as file:
        while part := file.read(PART_BYTES):
            text = rest + part
            yield from (int(match[1]) for match in _COCO_PATH.finditer(text))
            rest = text[-LONGEST_NAME:]


def _coco_number_of(image: Mapping[str, Any]) -> int | None:
    numbers = (coco_number(name) for name in (image["uri"], image["id"]) if name)
    return next((number for number in numbers if number is not None), None)
