"""Detects images that are in both the training and the evaluation set, by the SHA-256 of their encoded files.

Before captions are generated, ``hash_images`` hashes the evaluation images. A training image with one of these hashes
is excluded, even if its path, name or kind of source is different. In a finished run, ``measure_overlap`` compares the
images that were trained on with those that were evaluated on. Scaled or re-encoded copies are not detected.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from jsfree import schemas
from jsfree.config import Source
from jsfree.errors import RowError, StorageError
from jsfree.images.decoding import load_image
from jsfree.run.folder import Folder
from jsfree.run.run import Run
from jsfree.run.streaming import scan, scan_shard
from jsfree.schemas import EVALUATION_IMAGE, ImageRef, Sample, StageOutput, error_row

READERS = 4
"""Number of images read concurrently. Each may take ``max_bytes`` plus its pixels."""
HASH_COLUMN = ("image.sha256",)
"""Column of image hashes in a table of samples, pairs or captions."""


def hash_images(samples: Sequence[Sample], limits: Source) -> StageOutput:
    """Hash the images of samples.

    Args:
        limits: limits of ``load_image``. An image that exceeds them is not evaluated on, and therefore not hashed.

    Returns:
        Rows of ``schemas.EVALUATION_HASHES``, and an error row for each sample whose image cannot be decoded.
    """

    def hash_image(sample: Sample) -> str | RowError:
        try:
            return load_image(sample["image"], limits).sha256
        except RowError as error:
            return error

    output = StageOutput()
    with ThreadPoolExecutor(READERS, "hash-image") as readers:
        for sample, sha256 in zip(samples, readers.map(hash_image, samples), strict=True):
            if isinstance(sha256, RowError):
                output.errors.append(error_row(sample["sample_id"], "evaluation_hashes", sha256))
            else:
                output.rows.append({"sample_id": sample["sample_id"], "sha256": sha256})
    return output


def read_hashes(uri: str) -> frozenset[str]:
    """Read a table of ``schemas.EVALUATION_HASHES``; takes about 150 bytes of memory per image.

    Raises:
        StorageError: the table is missing or cannot be read.
    """
    if not Folder(uri).shards():
        raise StorageError(f"{uri} has no hashes of evaluation images", "create them again with --restart evaluation")
    parts = scan(Folder(uri), schemas.EVALUATION_HASHES, ["sha256"])
    return frozenset(sha256 for part in parts for sha256 in part["sha256"].to_pylist() if sha256 is not None)


def require_not_evaluated(image: ImageRef, sha256: str, evaluated: Collection[str]) -> None:
    """Refuse to train on an image of the evaluation set.

    Args:
        sha256: hash of the image.
        evaluated: hashes of the evaluation set.

    Raises:
        RowError: the image is in the evaluation set (kind ``evaluation_image``).
    """
    if sha256 in evaluated:
        raise RowError(
            EVALUATION_IMAGE, f"image {image['id']} is excluded: it is in the evaluation set (SHA-256 {sha256})"
        )


@dataclass(frozen=True)
class Overlap:
    """Overlap of the training and evaluation images of a run.

    Attributes:
        shared: number of distinct files that were both trained and evaluated on.
        excluded: number of rows excluded from training because their image is in the evaluation set.
        is_known: False if an image has no hash, or nothing has been trained or evaluated on yet.
    """

    shared: int
    excluded: int
    is_known: bool

    def __str__(self) -> str:
        """One or two sentences that follow a sentence about the evaluation images."""
        if self.shared:
            return f"{self.shared:,} of them {_be(self.shared)} also trained on (SHA-256 of the image files)."
        if not self.is_known:
            return "Whether any of them was also trained on is not known."
        none = "No round trained on any of them (SHA-256 of the image files)"
        if not self.excluded:
            return f"{none}."
        images = "training image that is" if self.excluded == 1 else "training images that are"
        return f"{none}: {self.excluded:,} {images} also in the evaluation set {_be(self.excluded)} excluded."


def measure_overlap(run: Run, last: int) -> Overlap:
    """Compare the images in ``selected`` of rounds 1 to ``last`` with those in ``captions``.

    Raises:
        StorageError: a table cannot be read.
    """
    evaluated: set[str | None] = set()
    for number in range(1, last + 1):
        captions = run.stage(number, "captions")
        evaluated.update(
            *(_image_hashes(scan(captions / name, schemas.SAMPLES, HASH_COLUMN)) for name in captions.names())
        )
    shared: set[str] = set()
    trained, excluded, unhashed = 0, 0, None in evaluated
    for number in range(1, last + 1):
        for sha256 in _image_hashes(scan(run.stage(number, "selected"), schemas.SAMPLES, HASH_COLUMN)):
            trained += 1
            unhashed |= sha256 is None
            if sha256 is not None and sha256 in evaluated:
                shared.add(sha256)
        pairs = run.manifest(number, "pairs")
        excluded += pairs.facts.get("excluded", 0) if pairs else 0
    return Overlap(len(shared), excluded, bool(evaluated and trained) and not unhashed)


def shards_with(folder: Folder, hashes: Collection[str]) -> list[int]:
    """Numbers of the shards of a stage that contain an image with one of ``hashes``.

    Raises:
        StorageError: a shard cannot be read.
    """
    if not hashes:
        return []
    shards = ((number, scan_shard(folder, number, schemas.SAMPLES, HASH_COLUMN)) for number in folder.shards())
    return [number for number, parts in shards if any(sha256 in hashes for sha256 in _image_hashes(parts))]


def _image_hashes(parts: Iterable[pa.Table]) -> Iterator[str | None]:
    """Iterate over the image hashes in a table of samples, pairs or captions."""
    for part in parts:
        yield from pc.struct_field(part["image"], "sha256").to_pylist()


def _be(count: int) -> str:
    return "was" if count == 1 else "were"
