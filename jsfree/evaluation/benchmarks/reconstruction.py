"""Reconstruction (arXiv 2411.17760, Fig. 3): pictures of what captions say, compared with the original images.

A caption that invents objects or leaves some out makes another picture. The similarity is the cosine of the CLIP
vectors of both images; on MiniWorld also the overlap of the scenes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from PIL import Image

from jsfree.config import RunConfig, Source
from jsfree.errors import RowError
from jsfree.evaluation.benchmarks.base import Answer, Generation, Measured, Question, Suite
from jsfree.evaluation.benchmarks.data_paths import DataPath
from jsfree.evaluation.benchmarks.measuring import CountRow, Measure, ratio
from jsfree.evaluation.metrics import Metric
from jsfree.images.decoding import load_image
from jsfree.run.folder import Folder
from jsfree.schemas import ErrorRow, ImageRef, Sample, error_row
from jsfree.stages.scoring import ClipScorer

READERS = 4
PICTURES = "pictures"
"""Folder of the pictures, below the folder of the suite."""


class Painter(Protocol):
    """Makes pictures of captions."""

    def describe(self) -> Mapping[str, Any]:
        """What the pictures depend on, for the result file."""

    def summary(self) -> str:
        """What was made and paid, in a sentence."""

    def paint(self, captions: Sequence[str]) -> Sequence[bytes | RowError]:
        """The encoded picture of each caption, or why there is none."""

    def overlap(self, image_id: str, caption: str) -> Mapping[str, float]:
        """Counts of what the image and the picture of its caption have in common; empty where this is not known."""


@dataclass(frozen=True)
class Reconstruction(Suite):
    """Captions of samples, turned back into images.

    Args:
        samples: the images and the request for captions.
        painter: makes the pictures.
        config: of the run: CLIP, limits of images and of captions.
        target: folder for the pictures.
    """

    samples: Sequence[Sample]
    painter: Painter
    config: RunConfig
    target: Folder

    name: ClassVar[str] = "reconstruction"
    title: ClassVar[str] = "Reconstruction"
    source: ClassVar[str] = "arXiv 2411.17760, Fig. 3; image model and similarity of our own choice"
    requirements = ()
    measures = (
        Measure(
            Metric("clip_similarity", "CLIP similarity", "cosine of image and picture, × 100", "higher", unit=""),
            ratio("cosine", "pictures"),
        ),
        Measure(
            Metric("object_overlap", "Objects in common", "of those in either scene", "higher"),
            ratio("common", "either"),
        ),
        Measure(
            Metric("exact_overlap", "Objects alike", "same colour and place too, of those in either", "higher"),
            ratio("alike", "either"),
        ),
    )

    @property
    def generation(self) -> Generation:
        """Greedy captions, as long as those of the run's first evaluation mode."""
        mode = next(iter(self.config.evaluate.modes.values()))
        return Generation(max_new_tokens=mode.max_new_tokens)

    @property
    def protocol(self) -> Mapping[str, Any]:
        """The image model and CLIP."""
        return {"painter": dict(self.painter.describe()), "clip": self.config.clip.label}

    def questions(self, data: DataPath) -> Sequence[Question]:  # noqa: ARG002
        """One request for each sample."""
        return [Question(each["sample_id"], each["image"], each["prompt"]) for each in self.samples]

    def score(self, data: DataPath, answers: Sequence[Answer]) -> Measured:  # noqa: ARG002
        """Paint the captions, store the pictures and compare them with the images.

        Raises:
            JudgeError: the image model cannot be asked further; run it again, its pictures are stored.
        """
        images = {each["sample_id"]: each["image"] for each in self.samples}
        limits = self.config.evaluate.source
        with ThreadPoolExecutor(READERS, "read-image") as readers:
            originals = list(readers.map(lambda each: _original(images[each.question_id], limits), answers))
        painted = self.painter.paint([answer.text for answer in answers])
        pictures = [_picture(each, answer, limits) for each, answer in zip(painted, answers, strict=True)]
        errors: list[ErrorRow] = []
        usable: list[tuple[Answer, Image.Image, bytes, Image.Image]] = []
        for answer, original, made in zip(answers, originals, pictures, strict=True):
            failed = next((each for each in (original, made) if isinstance(each, RowError)), None)
            if failed is not None:
                errors.append(error_row(answer.question_id, "reconstruction", failed))
                continue
            assert not isinstance(original, RowError)
            assert not isinstance(made, RowError)
            usable.append((answer, original, *made))
        cosines = self._cosines([(original, picture) for _, original, _, picture in usable])
        rows, details = [], []
        for (answer, _, content, _), cosine in zip(usable, cosines, strict=True):
            counts = {"pictures": 1.0, "cosine": cosine, **self.painter.overlap(answer.image_id, answer.text)}
            rows.append(CountRow(answer.image_id, counts))
            details.append(self._detail(answer, content, cosine))
        return Measured(rows, details, errors, notes=[f"Pictures: {self.painter.summary()}."])

    def _cosines(self, pairs: Sequence[tuple[Image.Image, Image.Image]]) -> list[float]:
        """Cosine of the CLIP vectors of each image and its picture."""
        if not pairs:
            return []
        scorer = ClipScorer(self.config)
        vectors = scorer.embed([scorer.pixels(image) for pair in pairs for image in pair])
        return [float(one @ other) for one, other in zip(vectors[::2], vectors[1::2], strict=True)]

    def _detail(self, answer: Answer, content: bytes, cosine: float) -> dict[str, Any]:
        """What the result has about a caption; its picture is stored."""
        name = f"{PICTURES}/{hashlib.sha256(content).hexdigest()[:16]}"
        self.target.write(name, content)
        return {
            "question_id": answer.question_id,
            "image_id": answer.image_id,
            "caption": answer.text,
            "picture": name,
            "clip_similarity": cosine,
        }


def _original(image: Any, limits: Source) -> Image.Image | RowError:
    try:
        return load_image(image, limits).image
    except RowError as error:
        return error


def _picture(painted: bytes | RowError, answer: Answer, limits: Source) -> tuple[bytes, Image.Image] | RowError:
    """A picture with its content, checked as any image from outside."""
    if isinstance(painted, RowError):
        return painted
    picture: ImageRef = {"id": f"the picture of {answer.question_id}", "uri": None, "bytes": painted, "sha256": None}
    try:
        return painted, load_image(picture, limits).image
    except RowError as error:
        return error
