"""COCO's annotation files: the categories of the objects in each image, and its reference captions.

<data>/instances_train2014.json  instances_val2014.json  captions_train2014.json  captions_val2014.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.base import Requirement
from jsfree.evaluation.benchmarks.data_paths import DataPath
from jsfree.evaluation.benchmarks.vocabulary import Vocabulary
from jsfree.schemas import ImageRef

ORIGIN = "annotations_trainval2014.zip of cocodataset.org"
VALIDATION = (
    Requirement("instances_val2014.json", "objects of COCO's validation images", ORIGIN),
    Requirement("captions_val2014.json", "reference captions of COCO's validation images", ORIGIN),
)
TRAINING = (
    Requirement("instances_train2014.json", "objects of COCO's training images", ORIGIN, optional=True),
    Requirement("captions_train2014.json", "reference captions of COCO's training images", ORIGIN, optional=True),
)
REQUIREMENTS = (*VALIDATION, *TRAINING)
IMAGES = Requirement(
    "val2014",
    "images to caption; all that are here are used",
    "val2014.zip of cocodataset.org",
    optional=True,
    for_questions=True,
)
PROMPT_FILE = Requirement("prompt.txt", "the request, in place of the suite's own", "your own", optional=True)


@dataclass
class Annotations:
    """What COCO's files say about some images.

    Attributes:
        categories: names of the annotated categories by image id, of crowds too.
        captions: reference captions by image id.
        file_names: names of image files by image id.
    """

    categories: dict[str, set[str]] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)
    file_names: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> set[str]:
        """Ids of the images that are listed in a file."""
        return self.categories.keys() | self.captions.keys()

    def require_categories(self, vocabulary: Vocabulary) -> None:
        """Check that the vocabulary has every annotated category.

        Raises:
            SourceError: it lacks one.
        """
        unknown = {name for names in self.categories.values() for name in names} - vocabulary.categories_by_word.keys()
        if unknown:
            raise SourceError(
                f"the annotations have the category {min(unknown)!r}, but the {vocabulary.name} vocabulary does not",
                "give a vocabulary with a line for each category: --vocabulary FILE ('jsfree miniworld export' writes"
                " MiniWorld's as synonyms.txt)",
            )

    def truth(self, vocabulary: Vocabulary, words: Callable[[str], Collection[str]]) -> dict[str, frozenset[str]]:
        """The categories that are in each image: those annotated, and those that a reference caption names.

        Args:
            words: returns the categories that a caption names.

        Raises:
            SourceError: as ``require_categories``.
        """
        self.require_categories(vocabulary)
        by_word = vocabulary.categories_by_word
        return {
            image: frozenset(by_word[name] for name in self.categories.get(image, ())).union(
                *(words(caption) for caption in self.captions.get(image, ()))
            )
            for image in self.images
        }


def read_annotations(data: DataPath, images: Collection[str] | None = None) -> Annotations:
    """Read the annotation files of a folder: those of the validation images, and of the training images if present.

    Args:
        images: ids of the images to keep; all by default.

    Raises:
        SourceError: a file is missing or wrong; the message names file and key.
    """
    for requirement in VALIDATION:
        requirement.require(data)
    found = Annotations()
    for requirement in REQUIREMENTS:
        path = requirement.find(data)
        if path is None:
            continue
        if requirement.name.startswith("instances"):
            _read_instances(path, images, found)
        else:
            _read_captions(path, images, found)
    return found


def validation_images(data: DataPath) -> list[ImageRef]:
    """The validation images whose files are in the data folder, by id.

    Raises:
        SourceError: a file is missing or wrong, or no image is here.
    """
    folder = IMAGES.require(data)
    found = Annotations()
    for number, row in _images(read_json(path := VALIDATION[0].require(data)), path, None):
        found.file_names[number] = row
    present = {path.name: path for path in folder.iterdir()}
    images: list[ImageRef] = [
        {"id": image, "uri": str(present[name]), "bytes": None, "sha256": None}
        for image, name in sorted(found.file_names.items(), key=_by_number)
        if name in present
    ]
    if not images:
        raise SourceError(f"{folder} holds none of the images of {path}", f"get them from {IMAGES.origin}")
    return images


def _by_number(item: tuple[str, str]) -> tuple[int, str]:
    return (int(item[0]) if item[0].isdecimal() else 0, item[0])


def require_images(annotations: Annotations, where: Mapping[str, str], data: DataPath) -> None:
    """Check that all answered images are annotated.

    Args:
        where: image ids, and where their answers are.

    Raises:
        SourceError: an image is not annotated.
    """
    missing = [image for image in where if image not in annotations.images]
    if missing:
        first = missing[0]
        place = f"{where[first]}: " if where[first] else ""
        raise SourceError(
            f"{place}image {first} is in no annotation file of {data} ({len(missing)} such images)",
            "check 'image_id'; for COCO's training images, add the files of train2014",
        )


def _read_instances(path: DataPath, images: Collection[str] | None, into: Annotations) -> None:
    content = read_json(path)
    names = {}
    for number, category in enumerate(_rows(content, "categories", path)):
        place = f"{path}, categories[{number}]"
        names[_key(category, "id", place)] = str(_key(category, "name", place))
    for image, name in _images(content, path, images):
        into.categories.setdefault(image, set())
        into.file_names[image] = name
    for number, row in enumerate(_rows(content, "annotations", path)):
        place = f"{path}, annotations[{number}]"
        image = str(_key(row, "image_id", place))
        if images is not None and image not in images:
            continue
        category = _key(row, "category_id", place)
        if category not in names:
            raise SourceError(f"{place}: category_id {category} is not in 'categories'", "download the file again")
        into.categories.setdefault(image, set()).add(names[category])


def _read_captions(path: DataPath, images: Collection[str] | None, into: Annotations) -> None:
    content = read_json(path)
    for image, name in _images(content, path, images):
        into.captions.setdefault(image, [])
        into.file_names.setdefault(image, name)
    for number, row in enumerate(_rows(content, "annotations", path)):
        place = f"{path}, annotations[{number}]"
        image = str(_key(row, "image_id", place))
        if images is None or image in images:
            into.captions.setdefault(image, []).append(str(_key(row, "caption", place)))


def _images(content: Mapping[str, Any], path: DataPath, images: Collection[str] | None) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(_rows(content, "images", path)):
        image = str(_key(row, "id", f"{path}, images[{number}]"))
        if images is None or image in images:
            yield image, str(row.get("file_name", ""))


def _rows(content: Mapping[str, Any], key: str, path: DataPath) -> list[dict[str, Any]]:
    rows = content.get(key)
    if not isinstance(rows, list):
        raise SourceError(f"{path} has no list {key!r}", "name a file in COCO's format")
    return rows


def _key(row: Any, key: str, place: str) -> Any:
    if not isinstance(row, dict) or key not in row:
        raise SourceError(f"{place} has no {key!r}", "repair the file, or download it again")
    return row[key]


def read_json(path: DataPath) -> Any:
    """The content of a JSON file.

    Raises:
        SourceError: it cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}", "download it again") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path} holds no JSON object", "name a file in COCO's format")
    return content
