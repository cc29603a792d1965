"""Checks of image files before they are opened."""

import struct
import zlib

import pytest

from jsfree.config import Serve
from serve.http.errors import ApiError
from serve.http.security import checked_image
from tests.support.asking import PNG, data_url
from tests.support.hostile import chunk, jpeg

SIZE = 33
"""Bytes of a PNG file until the end of its header."""


def png(comments: int) -> bytes:
    return PNG[:SIZE] + chunk(b"tEXt", b"a\0b") * comments + PNG[SIZE:]


def commented_jpeg(comments: int) -> bytes:
    content = jpeg()
    return content[:2] + b"\xff\xfe\0\2" * comments + content[2:]


@pytest.mark.parametrize(("file", "kind"), [(png, "png"), (commented_jpeg, "jpeg")])
def test_files_of_very_many_parts_are_refused(file, kind):
    content = file(2000)
    assert checked_image(data_url(content, kind), Serve(), "image") == content
    with pytest.raises(ApiError) as refused:
        checked_image(data_url(file(20_000), kind), Serve(), "image")
    assert (refused.value.status, refused.value.code) == (400, "invalid_image")


def test_chunks_whose_lengths_are_wrong_end_the_count():
    """Neither a length beyond the file nor one of no bytes makes the check run for ever or fail in another way."""
    for length in (0, 2**31 - 1, 2**32 - 1):
        content = PNG[:SIZE] + struct.pack(">I", length) + b"zzZz" + zlib.compress(bytes(100))
        with pytest.raises(ApiError):
            checked_image(data_url(content), Serve(), "image")
