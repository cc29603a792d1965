"""Which training images are also evaluation images, by the content of their files.

The evaluation set is hashed before the first captions are generated (``hash_images``), and a training image with one
of its hashes is excluded wherever it comes from: another path, another kind of source, another name. ``overlap``
compares, in a finished run, the images that were trained on with those that were evaluated on.

Images are the same if the SHA-256 of their encoded files is: a copy that was scaled or encoded again is another image.
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
"""Images that are read at once: each may take ``max_bytes``, and its pixels."""
IMAGE_HASH = ("image.sha256",)
"""The column of hashes in a table of samples, pairs or captions."""


def hash_images(samples: Sequence[Sample], limits: Source) -> StageOutput:
    """Rows of ``schemas.EVALUATION_HASHES``: one a sample whose image can be decoded, else an error row.

    Args:
        limits: the limits of ``load_image``; an image beyond them is not evaluated on, and so not hashed.
    """

    def hashed(sample: Sample) -> str | RowError:
        try:
            return load_image(sample["image"], limits)[1]
        except RowError as error:
            return error

    output = StageOutput()
    with ThreadPoolExecutor(READERS, "hash-image") as readers:
        for sample, found in zip(samples, readers.map(hashed, samples), strict=True):
            if isinstance(found, RowError):
                output.errors.append(error_row(sample["sample_id"], "evaluation_hashes", found))
            else:
                output.rows.append({"sample_id": sample["sample_id"], "sha256": found})
    return output


def read_hashes(uri: str) -> frozenset[str]:
    """The hashes of a table of ``schemas.EVALUATION_HASHES``, about 150 bytes of memory an image.

    Raises:
        StorageError: the table is missing or cannot be read: nothing is trained on that was not compared.
    """
    if not Folder(uri).shards():
        raise StorageError(f"{uri} holds no hashes of evaluation images", "make them again with --restart evaluation")
    parts = scan(Folder(uri), schemas.EVALUATION_HASHES, ["sha256"])
    return frozenset(found for part in parts for found in part["sha256"].to_pylist() if found is not None)


def require_not_evaluated(image: ImageRef, sha256: str, evaluated: Collection[str]) -> None:
    """Exclude an image of the evaluation set from training.

    Raises:
        RowError: ``sha256`` is in ``evaluated``; its kind is ``evaluation_image``.
    """
    if sha256 in evaluated:
        raise RowError(
            EVALUATION_IMAGE, f"image {image['id']} is also in the evaluation set (SHA-256 {sha256}), so it is excluded"
        )


@dataclass(frozen=True)
class Overlap:
    """Images that a run both trained and evaluated on.

    ``shared`` counts distinct files, ``excluded`` rows that were not trained on because their image is in the
    evaluation set. ``is_known`` is False where an image has no hash, or nothing was trained or evaluated on yet.
    """

    shared: int
    excluded: int
    is_known: bool

    def __str__(self) -> str:
        """A sentence or two to follow one that names the evaluation images."""
        if self.shared:
            return f"{self.shared:,} of them {_be(self.shared)} also trained on (SHA-256 of the image files)."
        if not self.is_known:
            return "Whether any of them was also trained on is not known."
        none = "No round trained on any of them (SHA-256 of the image files)"
        if not self.excluded:
            return f"{none}."
        images = "training image that is" if self.excluded == 1 else "training images that are"
        return f"{none}: {self.excluded:,} {images} also in the evaluation set {_be(self.excluded)} excluded."


def overlap(run: Run, last: int) -> Overlap:
    """Compare what rounds 1 to ``last`` trained on (``selected``) with what was evaluated on (``captions``).

    Raises:
        StorageError: a table cannot be read.
    """
    evaluated: set[str | None] = set()
    for number in range(1, last + 1):
        captions = run.stage(number, "captions")
        evaluated.update(
            *(_image_hashes(scan(captions / name, schemas.SAMPLES, IMAGE_HASH)) for name in captions.names())
        )
    shared: set[str] = set()
    trained, excluded, unhashed = 0, 0, None in evaluated
    for number in range(1, last + 1):
        for found in _image_hashes(scan(run.stage(number, "selected"), schemas.SAMPLES, IMAGE_HASH)):
            trained += 1
            unhashed |= found is None
            if found is not None and found in evaluated:
                shared.add(found)
        pairs = run.manifest(number, "pairs")
        excluded += pairs.facts.get("excluded", 0) if pairs else 0
    return Overlap(len(shared), excluded, bool(evaluated and trained) and not unhashed)


def shards_with(folder: Folder, hashes: Collection[str]) -> list[int]:
    """Numbers of the shards of a stage that hold an image with one of ``hashes``.

    Raises:
        StorageError: a shard cannot be read.
    """
    if not hashes:
        return []
    shards = ((number, scan_shard(folder, number, schemas.SAMPLES, IMAGE_HASH)) for number in folder.shards())
    return [number for number, parts in shards if any(found in hashes for found in _image_hashes(parts))]


def _image_hashes(parts: Iterable[pa.Table]) -> Iterator[str | None]:
    """The hashes of the images in parts of a table of samples, pairs or captions."""
    for part in parts:
        yield from pc.struct_field(part["image"], "sha256").to_pylist()


def _be(count: int) -> str:
    return "was" if count == 1 else "were"
