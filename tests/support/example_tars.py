"""Small tar files of small pictures, and what a run draws from them."""

import io
import tarfile

import pytest
from PIL import Image

from jsfree.config import RunConfig, Source
from jsfree.errors import RowError
from jsfree.images.decoding import load_image
from jsfree.images.sources import training_samples

LIMITS = Source(min_side=4, max_pixels=10_000, max_bytes=100_000)


def picture(number=0):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (number % 256, number // 256, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def packed(members, form=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def samples(path, count=None, seed=0, kind="webdataset"):
    source = {"kind": kind, "path": str(path), "count": count}
    evaluate = {"source": {"kind": "miniworld", "split": "test", "count": 2}}
    return training_samples(RunConfig.model_validate({"source": source, "evaluate": evaluate, "seed": seed}), 1)


def ids(found):
    return [sample["image"]["id"] for sample in found]


def failure(image, limits=LIMITS):
    with pytest.raises(RowError) as caught:
        load_image(image, limits)
    return caught.value
