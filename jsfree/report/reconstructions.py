"""The pictures of ``jsfree reconstruct``: each image next to those that an image model made of the models' captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsfree import schemas
from jsfree.errors import JsfreeError
from jsfree.report.benchmarks import FOLDER
from jsfree.report.pictures import content_uri, data_uri
from jsfree.run.folder import Folder
from jsfree.run.run import Run
from jsfree.run.streaming import scan

SUITE = "reconstruction"
SHOWN = 12


@dataclass(frozen=True)
class Picture:
    """What was made of a model's caption; ``picture`` is a ``data:`` URI, or None if it cannot be read."""

    model: str
    caption: str
    picture: str | None
    similarity: str


@dataclass(frozen=True)
class ReconstructionView:
    """An image, and the pictures of its captions."""

    image_id: str
    original: str | None
    pictures: list[Picture]


def reconstruction_views(run: Run, models: Sequence[str]) -> list[ReconstructionView]:
    """The first images of the reconstruction of a run; empty if there is none.

    Raises:
        StorageError: a result cannot be read.
    """
    folder = run.folder / FOLDER
    results = {
        model: folder.read_json(f"{model}/{SUITE}.json") for model in models if folder.exists(f"{model}/{SUITE}.json")
    }
    if not results:
        return []
    details = {model: {each["question_id"]: each for each in result["details"]} for model, result in results.items()}
    shown = [name for name in next(iter(details.values())) if all(name in of for of in details.values())][:SHOWN]
    images = _images(run, shown)
    return [
        ReconstructionView(
            name,
            data_uri(images[name], run.config.evaluate.source) if name in images else None,
            [_picture(folder / SUITE, model, of[name]) for model, of in details.items()],
        )
        for name in shown
    ]


def _picture(folder: Folder, model: str, detail: Mapping[str, Any]) -> Picture:
    try:
        uri = content_uri(folder.read(detail["picture"]))
    except JsfreeError:
        uri = None
    return Picture(model, detail["caption"], uri, f"{100 * detail['clip_similarity']:.1f}")


def _images(run: Run, names: Sequence[str]) -> dict[str, Any]:
    """The images of evaluation samples, by the ids of the samples."""
    wanted = set(names)
    found: dict[str, Any] = {}
    for table in scan(run.stage(1, "evaluation"), schemas.SAMPLES, ("sample_id", "image")):
        found |= {row["sample_id"]: row["image"] for row in table.to_pylist() if row["sample_id"] in wanted}
        if len(found) == len(wanted):
            break
    return found
