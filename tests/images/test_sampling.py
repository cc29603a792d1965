"""A seed draws the same sample whatever the order of the source; removing an image does not affect the others."""

import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jsfree.config import RunConfig, Source
from jsfree.errors import RowError, SourceError
from jsfree.images.decoding import image_bytes, load_image
from jsfree.images.sources import evaluation_samples, training_samples

ROWS, COUNT = 66_500, 10_000  # a tenth of LLaVA's 665k rows and of the paper's 100k images


def picture(number=0):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (number, 0, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def config(source, **evaluate):
    evaluate = {**source, **evaluate} if evaluate else {"kind": "miniworld", "split": "test", "count": 2}
    return RunConfig.model_validate({"source": source, "evaluate": {"source": evaluate}, "seed": 11})


def ids(samples):
    return [sample["image"]["id"] for sample in samples]


def drawn(**source):
    return ids(training_samples(config(source), 1))


def llava(path, images):
    path.write_text(json.dumps([{"id": str(row), "image": image} for row, image in enumerate(images)]))
    return {"kind": "llava_json", "path": str(path), "count": COUNT}


def test_removed_images_are_replaced_at_the_end_of_the_sample(tmp_path):
    rng = random.Random(0)
    images = [f"{rng.choice(['coco/train2017', 'gqa/images', 'vg/VG_100K'])}/{row:012d}.jpg" for row in range(ROWS)]
    before = drawn(**llava(tmp_path / "all.json", images))
    assert len(set(before)) == COUNT

    lost = set(rng.sample(images, 700))
    rest = [image for image in images if image not in lost]
    rng.shuffle(rest)
    after = drawn(**llava(tmp_path / "rest.json", rest + rest[:500]))  # shuffled rows, some of them repeated
    kept = [image for image in before if image not in lost]
    assert 50 < COUNT - len(kept) < 150
    assert after[: len(kept)] == kept  # the order is kept; replacements come last


def test_missing_files_become_error_rows_and_do_not_change_the_sample(tmp_path):
    names = [f"ocr_vqa/images/{number}.jpg" for number in range(60)]
    (tmp_path / "ocr_vqa" / "images").mkdir(parents=True)
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(picture(number))
    source = {**llava(tmp_path / "mix.json", names), "count": 40}
    before = drawn(**source)
    gone = [*before[3:6], before[-1]]
    for name in gone:
        (tmp_path / name).unlink()
    samples = training_samples(config(source), 1)
    assert ids(samples) == before
    kinds = {}
    for sample in samples:
        try:
            load_image(sample["image"], Source(min_side=4))
        except RowError as error:
            kinds[sample["image"]["id"]] = error.kind
    assert kinds == dict.fromkeys(gone, "missing")


def test_training_and_evaluation_stay_disjoint_when_images_are_removed(tmp_path):
    images = [f"{row}.jpg" for row in range(400)]
    for lost in (0, 10, 50):
        settings = config({**llava(tmp_path / "mix.json", images[lost:]), "count": 300}, count=40)
        training, held_out = ids(training_samples(settings, 1)), ids(evaluation_samples(settings))
        assert (len(training), len(held_out), set(training) & set(held_out)) == (300, 40, set())
        if not lost:
            first = held_out
    assert [image for image in first if int(image[:-4]) >= 50] == [image for image in held_out if image in first]


def test_reordered_and_removed_rows_and_tables_do_not_affect_other_images(tmp_path):
    rows = [{"id": f"image-{number:03d}", "image": picture(number)} for number in range(200)]
    folder = tmp_path / "tables"
    folder.mkdir()

    def sample(parts, count):
        for path in folder.iterdir():
            path.unlink()
        for number, part in enumerate(parts):
            pq.write_table(pa.Table.from_pylist(part), folder / f"{number}.parquet", row_group_size=7)
        samples = training_samples(config({"kind": "parquet", "path": str(folder), "count": count}), 1)
        assert all(image_bytes(s["image"], Source()) == picture(int(s["image"]["id"][-3:])) for s in samples)
        return ids(samples)

    before = sample([rows[:120], rows[120:]], 80)
    backwards = rows[::-1]
    assert sample([backwards[150:], backwards[:20], backwards[20:150]], 80) == before
    left = sample([rows[:120]], 60)
    kept = [image for image in before if int(image[-3:]) < 120]
    assert left[: len(kept)] == kept


def test_with_imported_pairs_a_source_only_needs_the_evaluation_images(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    few = config({"kind": "folder", "path": str(tmp_path), "count": 2000}, count=3)
    with pytest.raises(SourceError, match="has 5 images, but 2003 are needed"):
        evaluation_samples(few)
    theirs = RunConfig.model_validate({**few.model_dump(), "imported": {"format": "trl", "path": "/theirs.jsonl"}})
    assert len(evaluation_samples(theirs)) == 3
