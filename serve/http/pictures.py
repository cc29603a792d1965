"""Images that the page offers: samples of the run's evaluation set, and new scenes of MiniWorld."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jsfree import schemas
from jsfree.config import Source
from jsfree.evaluation.miniworld import absent_words
from jsfree.images.decoding import load_image
from jsfree.miniworld import world
from jsfree.report.pictures import data_uri
from jsfree.report.scenes import shade_edges
from jsfree.run.folder import Folder
from jsfree.run.run import Run
from jsfree.run.streaming import scan_shard
from jsfree.schemas import ImageRef

SAMPLES = 8
MAX_SIDE = 1024
"""Longest side of a sample that is sent to the browser, in pixels, unless the file itself is in the run's tables."""
MEDIA = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
SPLIT = "test"
FIRST_NEW = 100_000
"""Number of the first new scene: those before it may have been evaluated."""
MAX_NEW = 10**9


class Pictures:
    """The images of a run for the page.

    An image is ``{"id", "image", "picture", "absent"}``: a data URL to caption, one to show, and the words for objects
    that are not in it (None where its contents are not known).
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._shards: dict[str, list[dict[str, Any]]] = {}

    @property
    def has_scenes(self) -> bool:
        """Whether new scenes can be drawn."""
        return self._run.config.evaluate.source.kind == "miniworld"

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self._rows)

    @property
    def first_sample(self) -> int:
        """Number of the first sample of which m0 and the last model have different captions; 0 if there is none."""
        before = self._captions(1, "m0")
        after: dict[str, str] = {}
        for number in reversed(self._run.rounds()):
            after = after or self._captions(number, f"m{number}")
        ids = [row["id"] for row in self._rows]
        return next((at for at, each in enumerate(ids) if each in after and before.get(each) != after[each]), 0)

    def sample(self, number: int) -> dict[str, Any] | None:
        """A sample; None if there is none of this number."""
        return self._described(self._rows[number]) if 0 <= number < len(self._rows) else None

    def scene(self, number: int) -> dict[str, Any] | None:
        """A new scene; None if the run has none, or the number is too large."""
        if not self.has_scenes or not 0 <= number < MAX_NEW:
            return None
        scene = world.scene(SPLIT, FIRST_NEW + number)
        return self._described({"id": scene.scene_id, "uri": None, "bytes": world.png_bytes(scene), "sha256": None})

    def score_edges(self) -> list[float]:
        """Scores that divide the sentences of m0's captions into fifths; empty if there are none yet."""
        modes = self._run.config.evaluate.modes
        folders = [self._run.stage(1, f"captions_scored/m0-{mode}") for mode in modes]
        shards = (self._first_shard(folder, schemas.SCORED_CAPTIONS, ["sentences"]) for folder in folders)
        scores = ([sentence["score"] for row in rows for sentence in row["sentences"]] for rows in shards)
        return shade_edges(np.array(next(filter(None, scores), []), np.float64))

    def _captions(self, number: int, model: str) -> dict[str, str]:
        """Captions by image in the first shard of the first evaluation mode; empty if there are none yet."""
        folder = self._run.stage(number, f"captions/{model}-{next(iter(self._run.config.evaluate.modes))}")
        rows = self._first_shard(folder, schemas.CAPTIONS, ["image.id", "text"])
        return {row["image"]["id"]: row["text"] for row in rows}

    @property
    def _rows(self) -> list[ImageRef]:
        folder = self._run.stage(1, "evaluation")
        return [row["image"] for row in self._first_shard(folder, schemas.SAMPLES, ["image"], SAMPLES)]

    def _first_shard(
        self, folder: Folder, schema: pa.Schema, columns: Sequence[str], limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Rows of a folder's first shard; empty if there is none yet. Read once: a finished shard does not change."""
        if folder.uri not in self._shards:
            shards = folder.shards()
            if not shards:
                return []
            table = next(scan_shard(folder, shards[0], schema, columns))
            self._shards[folder.uri] = table.slice(0, limit).to_pylist()
        return self._shards[folder.uri]

    def _described(self, image: ImageRef) -> dict[str, Any]:
        source = self._run.config.evaluate.source
        content = image["bytes"] or _shrunk(image, source)
        media = next((name for start, name in MEDIA.items() if content.startswith(start)), "image/jpeg")
        url = f"data:{media};base64,{base64.b64encode(content).decode()}"
        absent = absent_words(world.scene_from_id(image["id"])) if self.has_scenes else None
        return {"id": image["id"], "image": url, "picture": data_uri(image, source) or url, "absent": absent}


def _shrunk(image: ImageRef, source: Source) -> bytes:
    """An image that the run refers to by its path, as a JPEG of at most ``MAX_SIDE`` pixels a side."""
    picture = load_image(image, source).image
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=90)
    return sink.getvalue()
