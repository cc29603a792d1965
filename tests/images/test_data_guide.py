"""The programs in docs/data.md run, its configurations are valid, and its numbers match the settings."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from jsfree import config, schemas
from jsfree.images import tables
from jsfree.images.decoding import load_image
from jsfree.images.sources import evaluation_samples, training_samples
from jsfree.run.folder import Folder, shard_name
from tests.support import ROOT

GUIDE = (ROOT / "docs" / "data.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def run(name, *arguments, cwd):
    (program,) = (block for block in blocks("python") if block.startswith(f"# {name} "))
    (cwd / name).write_text(program)
    done = subprocess.run([sys.executable, name, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def picture(number):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (number, 0, 30)).save(buffer, "GIF" if number % 5 == 0 else "JPEG")
    return buffer.getvalue()


def sample(settings, path, kind):
    """Draws samples with a configuration from the guide, with smaller counts and another path."""
    for source in (settings["source"], settings["evaluate"]["source"]):
        source |= {"kind": kind, "path": str(path)}
    settings["source"]["count"], settings["evaluate"]["source"]["count"] = 20, 5
    chosen = config.build(settings, where="docs/data.md")
    samples = training_samples(chosen, 1)
    assert not {s["sample_id"] for s in samples} & {s["sample_id"] for s in evaluation_samples(chosen)}
    return samples


@pytest.fixture
def mix(tmp_path):
    """A list like LLaVA's mix: 39 rows with 30 images (two missing, some GIFs named .jpg), and one row without."""
    names = [f"{part}/{number:04d}.jpg" for part in ("coco/train2017", "ocr_vqa/images") for number in range(15)]
    for number, name in enumerate(names):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if number not in (17, 23):
            path.write_bytes(picture(number))
    rows = [{"id": str(row), "image": name, "conversations": []} for row, name in enumerate(names + names[:9])]
    (tmp_path / "data" / "mix.json").write_text(json.dumps([*rows, {"id": "text", "conversations": []}]))
    return tmp_path


def test_every_configuration_in_the_guide_is_valid():
    built = [config.build(yaml.safe_load(block), where="docs/data.md") for block in blocks("yaml")]
    assert [each.source.kind for each in built[:3]] == ["llava_json", "webdataset", "folder"]
    assert built[3].imported.format == "rlaif-v"


def test_check_and_pack_programs_report_missing_images_and_keep_the_sample(mix):
    counted = run("check.py", "data/mix.json", "data", cwd=mix)
    assert counted.splitlines() == ["coco: 15 present, 0 missing", "ocr_vqa: 13 present, 2 missing"]
    assert run("pack.py", "data/mix.json", "data", "shards", cwd=mix) == "28 images packed, 2 missing\n"

    listed, packed = (yaml.safe_load(block) for block in blocks("yaml")[:2])
    listed["source"]["images"] = listed["evaluate"]["source"]["images"] = str(mix / "data")
    from_files = sample(listed, mix / "data" / "mix.json", "llava_json")
    from_tars = sample(packed, mix / "shards", "webdataset")
    missing = {"ocr_vqa/images/0002.jpg", "ocr_vqa/images/0008.jpg"}
    names = [s["image"]["id"] for s in from_files if s["image"]["id"] not in missing]
    assert [s["image"]["id"] for s in from_tars][: len(names)] == names
    assert all(load_image(s["image"], config.Source())[0].size == (16, 12) for s in from_tars)


def test_the_unpack_program_converts_tables_to_shards(mix):
    contents = [picture(number) for number in range(30)]
    pq.write_table(pa.table({"photo": [{"bytes": each, "path": None} for each in contents]}), mix / "a.parquet")
    pq.write_table(pa.table({"photo": [None, *contents]}), mix / "b.parquet")
    run("unpack.py", "shards", "photo", "a.parquet", "b.parquet", cwd=mix)
    samples = sample(yaml.safe_load(blocks("yaml")[1]), mix / "shards", "webdataset")
    for each in samples:
        table, row = each["image"]["id"].removesuffix(".jpg").split("/")
        expected = contents[int(row) - (table == "b")]
        assert (
            load_image(each["image"], config.Source())[1]
            == load_image({**each["image"], "bytes": expected}, config.Source())[1]
        )


def test_the_errors_program_counts_errors_by_kind(mix):
    rows = [
        {"sample_id": str(n), "stage": "pairs", "kind": "missing", "message": f"image {n} is gone"} for n in range(3)
    ]
    table = pa.Table.from_pylist([*rows, {**rows[0], "kind": "too_small"}], schema=schemas.ERRORS)
    Folder(str(mix / "errors")).write_table(shard_name(0), table)
    printed = run("errors.py", "errors", cwd=mix).splitlines()
    assert sorted(printed)[0] == "missing: 3, for example: image 0 is gone"


def test_numbers_and_error_kinds_in_the_guide_match_the_code():
    source = config.Source()
    assert (source.max_bytes, source.max_pixels, source.min_side) == (50_000_000, 40_000_000, 8)
    assert tables.MAX_EMBEDDED_BYTES == 4e9
    assert config.RunConfig().max_failed_fraction == 0.01
    kinds = set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE))
    documented = Path(load_image.__code__.co_filename).read_text().split('"""')[1]
    assert kinds == set(re.findall(r"``(\w+)``", documented))
