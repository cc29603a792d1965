"""Fixtures shared by the tests of tar files."""

import pytest

from tests.support.example_tars import packed, picture


@pytest.fixture
def shards(tmp_path):
    """Three shards with thirty images, a caption and a JSON file for each, and an AppleDouble file from macOS."""
    root = tmp_path / "shards"
    root.mkdir()
    for shard in range(3):
        members = {}
        for number in range(shard * 10, shard * 10 + 10):
            key = f"./coco/{number:09d}"
            members |= {f"{key}.png": picture(number), f"{key}.txt": b"a caption", f"{key}.json": b"{}"}
        members["coco/._000000000.png"] = b"no image"
        (root / f"shard-{shard:03d}.tar").write_bytes(packed(members))
    (root / "README.md").write_text("no shard")
    return root
