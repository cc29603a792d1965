"""Small annotation files in COCO's format."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_coco(
    folder: Path,
    instances: Mapping[int, Sequence[str]],
    captions: Mapping[int, Sequence[str]],
    part: str = "val",
) -> Path:
    """Write instances and captions of one part (train or val): category names and reference captions by image id."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted({name for of in instances.values() for name in of})
    numbers = {name: number for number, name in enumerate(names, 1)}
    images = [{"id": image, "file_name": f"COCO_{part}2014_{image:012d}.jpg"} for image in instances]
    boxes: list[dict[str, Any]] = [
        {"id": 100 * image + number, "image_id": image, "category_id": numbers[name], "iscrowd": 0}
        for image, of in instances.items()
        for number, name in enumerate(of)
    ]
    texts = [
        {"id": 100 * image + number, "image_id": image, "caption": text}
        for image, of in captions.items()
        for number, text in enumerate(of)
    ]
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / f"instances_{part}2014.json").write_text(json.dumps(content), encoding="utf-8")
    content = {"images": images, "annotations": texts}
    (folder / f"captions_{part}2014.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
