"""Small tar files of small images, and the samples that a run draws from them."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jsfree.config import RunConfig, Source
from jsfree.errors import RowError
from jsfree.images.decoding import load_image
from jsfree.images.sources import training_samples

LIMITS = Source(min_side=4, max_pixels=10_000, max_bytes=100_000)


def picture(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (number % 256, number // 256, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def packed(members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def samples(path: Path | str, count: int | None = None, seed: int = 0, kind: str = "webdataset") -> Any:
    source = {"kind": kind, "path": str(path), "count": count}
    evaluate = {"source": {"kind": "miniworld", "split": "test", "count": 2}}
    return training_samples(RunConfig.model_validate({"source": source, "evaluate": evaluate, "seed": seed}), 1)


def ids(found: Iterable[Any]) -> list[str]:
    return [sample["image"]["id"] for sample in found]


def failure(image: Any, limits: Source = LIMITS) -> RowError:
    with pytest.raises(RowError) as caught:
        load_image(image, limits)
    return caught.value
