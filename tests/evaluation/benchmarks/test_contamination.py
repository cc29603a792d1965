"""Images of a benchmark that a run trained on: by hash and by COCO's number, and the metrics without them."""

import json

import pytest

from jsfree import schemas
from jsfree.errors import ConfigError
from jsfree.evaluation.benchmarks import contamination, vocabulary
from jsfree.evaluation.benchmarks.base import Answer, Question
from jsfree.evaluation.benchmarks.chair import Chair
from jsfree.evaluation.benchmarks.contamination import ImageKeys, TrainedImages, coco_number, keys_of
from jsfree.evaluation.benchmarks.pope import Pope
from jsfree.evaluation.benchmarks.results import Result
from jsfree.run.folder import shard_name
from tests.support import example_run
from tests.support.coco_files import write_coco


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("coco/train2017/000000033471.jpg", 33471),
        ("COCO_val2014_000000033471.jpg", 33471),
        ("s3://bucket/val2014/COCO_val2014_000000000042.jpg", 42),
        ("000000000042", 42),
        ("AMBER_42.jpg", None),
        ("gqa/images/2354786.jpg", None),
        ("miniworld-test-000042", None),
        ("vg/VG_100K/000000033471123.jpg", None),
    ],
)
def test_one_photograph_has_one_number_in_both_releases_of_coco(name, number):
    assert coco_number(name) == number


def test_the_images_of_all_rounds_are_read_from_the_selected_pairs(tmp_path):
    small = {"source": {"count": 12}, "evaluate": {"source": {"split": "test", "count": 4}}}
    run = example_run.build(tmp_path / "run", rounds=2, errors=False, **small)
    trained = TrainedImages.of_run(run)
    assert trained.rounds == 2
    kept = {
        row["image"]["id"]
        for number in (1, 2)
        for row in run.stage(number, "selected").read_table(shard_name(0), schemas.SAMPLES).to_pylist()
    }
    scenes = [("unlabelled", index) for index in range(24)] + [("test", index) for index in range(4)]
    images = [example_run.sample(run, *scene)["image"] for scene in scenes]
    found = trained.find({image["id"]: ImageKeys(image["sha256"], None) for image in images})
    assert set(found.found) == kept
    assert 2 < len(kept) < 28
    assert f"{len(kept)} of 28 images were trained on in 2 rounds ({len(kept)} by hash, 0 by COCO number)" in str(found)


def test_images_are_identified_by_what_their_suite_knows():
    image = {"id": "42", "uri": "/data/val2014/COCO_val2014_000000000042.jpg", "bytes": None, "sha256": None}
    asked = [Question("42", image, "?"), Question("43", {**image, "id": "43", "uri": None}, "?")]
    answers = [Answer("42", "42", "A dog.", {"sha256": "f" * 64})]
    keys = keys_of(Chair(vocabulary.built_in()), asked, answers)
    assert keys == {"42": ImageKeys("f" * 64, 42)}  # nothing was answered about the other image
    pope = [Question("random/1", {**image, "id": "COCO_val2014_000000000042.jpg"}, "?")]
    answer = Answer("random/1", "COCO_val2014_000000000042.jpg", "Yes", {"sha256": None})
    assert keys_of(Pope(), pope, [answer])["COCO_val2014_000000000042.jpg"] == ImageKeys(None, 42)


def test_a_result_lists_the_images_and_has_the_metrics_without_them(tmp_path):
    data = write_coco(tmp_path, {1: ["dog"], 2: ["cat"], 3: ["bus"]}, {1: [], 2: [], 3: []})
    answers = [Answer("1", "1", "A dog and a cup."), Answer("2", "2", "A cat."), Answer("3", "3", "A cup.")]
    trained = TrainedImages(1, frozenset({"a"}), frozenset({3}), unhashed=2)
    keys = {"1": ImageKeys("a", 1), "2": ImageKeys("b", 2), "3": ImageKeys("c", 3)}
    suite = Chair(vocabulary.built_in(), "lemmas")
    found = trained.find(keys)
    result = Result(suite, "m1", answers, suite.score(data, answers), {}, 3, contamination=found, resamples=10)
    written = result.as_json()
    assert written["metrics"]["CHAIRs"]["value"] == pytest.approx(2 / 3)
    assert written["contamination"]["by_hash"] == ["1"]
    assert written["contamination"]["by_coco_number"] == ["3"]
    assert written["contamination"]["metrics_without"]["CHAIRs"]["value"] == 0
    assert any("2 of 3 images were trained on" in note and "CHAIRs 0.0" in note for note in written["notes"])


def test_a_benchmark_of_which_every_image_was_trained_on_has_no_other_metrics(tmp_path):
    data = write_coco(tmp_path, {1: ["dog"]}, {1: []})
    answers = [Answer("1", "1", "A dog.")]
    found = TrainedImages(1, frozenset({"a"}), frozenset()).find({"1": ImageKeys("a", None)})
    suite = Chair(vocabulary.built_in(), "lemmas")
    result = Result(suite, "m1", answers, suite.score(data, answers), {}, 1, contamination=found, resamples=10)
    assert result.as_json()["contamination"]["metrics_without"] is None


def test_unhashed_training_images_are_told_where_nothing_was_found():
    trained = TrainedImages(1, frozenset({"a"}), frozenset(), unhashed=7)
    assert "7 training images have no hash" in str(trained.find({"1": ImageKeys("b", None)}))


def test_coco_images_are_found_in_a_list_of_any_format(tmp_path, monkeypatch):
    monkeypatch.setattr(contamination, "PART_BYTES", 100)  # names are cut at the ends of parts
    names = [f"coco/train2017/{number:012d}.jpg" for number in range(40)]
    path = tmp_path / "mix.json"
    records = [*({"id": "x", "image": name} for name in names), {"image": "gqa/images/7.jpg"}]
    path.write_text(json.dumps(records), encoding="utf-8")
    trained = TrainedImages(0, frozenset(), frozenset()).with_lists([str(path)])
    assert trained.coco == frozenset(range(40))
    found = trained.find({"39": ImageKeys(None, 39), "40": ImageKeys(None, 40)})
    assert found.found == ["39"]
    assert f"1 of 2 images were trained on in {path} (0 by hash, 1 by COCO number)" in str(found)


def test_a_list_that_names_no_coco_image_is_refused(tmp_path):
    path = tmp_path / "mix.json.gz"
    path.write_bytes(b"\x1f\x8b not a list")
    with pytest.raises(ConfigError, match=r"mix\.json\.gz names no COCO image"):
        TrainedImages(0, frozenset(), frozenset()).with_lists([str(path)])


def test_every_pair_without_a_hash_is_counted(tmp_path):
    run = example_run.build(tmp_path / "run", errors=False)
    rows = run.stage(1, "selected").read_shards(schemas.SELECTED).to_pylist()
    for row in rows:
        row["image"] = {**row["image"], "sha256": None}
    example_run.write_rows(run, 1, "selected", rows, schemas.SELECTED)
    assert TrainedImages.of_run(run).unhashed == len(rows) > 1
