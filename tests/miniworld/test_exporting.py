"""MiniWorld's scenes in the layouts of benchmarks."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from jsfree.errors import ConfigError
from jsfree.evaluation import miniworld
from jsfree.evaluation.benchmarks import vocabulary
from jsfree.evaluation.benchmarks.base import Answer
from jsfree.evaluation.benchmarks.chair import Chair
from jsfree.evaluation.benchmarks.registry import SuiteOptions, build
from jsfree.evaluation.benchmarks.results import Result
from jsfree.miniworld import prose, world
from jsfree.miniworld.exporting import export_scenes


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco") / "out"
    export_scenes("coco", "test", 10, 40, folder, "prose")
    return folder


def test_coco_files_hold_the_scenes(coco):
    content = json.loads((coco / "instances_val2014.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    scene = world.scene("test", 12)
    found = {(names[row["category_id"]], tuple(row["bbox"])) for row in content["annotations"] if row["image_id"] == 12}
    assert found == {
        (item.name, (item.box[0], item.box[1], item.box[2] - item.box[0], item.box[3] - item.box[1]))
        for item in scene.objects
    }
    (file,) = (row["file_name"] for row in content["images"] if row["id"] == 12)
    with Image.open(coco / "val2014" / file) as image:
        assert image.tobytes() == world.draw(scene).tobytes()


@pytest.mark.parametrize("writer", [world.noisy_caption, prose.noisy_caption], ids=["plain", "prose"])
def test_chair_equals_the_exact_metrics_mention_by_mention(coco, writer):
    scenes = [world.scene("test", index) for index in range(10, 50)]
    rng = random.Random(7)
    answers = [Answer(f"{scene.index}-{n}", f"{scene.index}", writer(scene, rng)) for scene in scenes for n in range(5)]
    suite = Chair(vocabulary.load(coco / "synonyms.txt"), "lemmas")
    measured = suite.score(coco, answers)
    counts = []
    for answer, sentence in zip(answers, measured.details, strict=True):
        scene = world.scene("test", int(answer.image_id))
        assert sentence["mscoco_generated_words"] == [mention.noun for mention in miniworld.mentions(answer.text)]
        absent = [mention.noun for mention in miniworld.hallucinated_mentions(scene, answer.text)]
        assert [category for _, category in sentence["mscoco_hallucinated_words"]] == absent
        counts.append(miniworld.count_caption(scene, answer.text))
    assert sum(count.hallucinated for count in counts) > 100
    exact = miniworld.summarise(counts, resamples=10)
    found = Result(suite, "m0", answers, measured, {}, len(answers), resamples=10).as_json()["metrics"]
    assert found["CHAIRi"]["value"] == pytest.approx(exact["mention_hallucination"]["value"])
    assert found["recall"]["value"] == pytest.approx(exact["recall"]["value"])
    assert found["words"]["value"] == pytest.approx(exact["words"]["value"])


def test_the_questions_of_a_chair_run_are_those_of_miniworld(coco):
    questions = Chair(vocabulary.load(coco / "synonyms.txt")).questions(coco)
    assert [question.image["id"] for question in questions] == [str(index) for index in range(10, 50)]
    assert {question.prompt for question in questions} == {world.PROMPT}


def test_pope_asks_for_present_and_absent_objects_alike(tmp_path):
    written = export_scenes("pope", "development", 0, 30, tmp_path / "pope")
    scenes = {
        f"{world.scene('development', index).scene_id}.png": world.scene("development", index) for index in range(30)
    }
    answered = {}
    for kind in ("random", "popular", "adversarial"):
        lines = (tmp_path / "pope" / f"coco_pope_{kind}.json").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == written[f"{kind} questions"]
        for row in rows:
            named = next(name for name in miniworld._objects_by_word().values() if f" {name} in" in row["text"])
            assert (named in {item.name for item in scenes[row["image"]].objects}) == (row["label"] == "yes")
        labels = [row["label"] for row in rows]
        assert labels.count("yes") == labels.count("no")
        answered[kind] = [row["text"] for row in rows]
    assert answered["random"] != answered["popular"] != answered["adversarial"]


def test_amber_files_refer_to_each_other(tmp_path):
    export_scenes("amber", "test", 0, 5, tmp_path / "amber")
    read = {
        name: json.loads((tmp_path / "amber" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("annotations", "relation", "query/query_all")
    }
    assert [row["id"] for row in read["annotations"]] == list(range(1, 26))
    assert [row["id"] for row in read["query/query_all"]] == list(range(1, 26))
    first, scene = read["annotations"][0], world.scene("test", 0)
    assert first["truth"] == [item.name for item in scene.objects]
    assert not set(first["hallu"]) & set(first["truth"])
    assert read["relation"]["cup"] == ["cups", "mug", "mugs"]
    assert (tmp_path / "amber" / "image" / read["query/query_all"][0]["image"]).exists()


def test_all_layouts_are_written_where_the_suites_find_them(tmp_path):
    export_scenes("all", "test", 0, 4, tmp_path / "all")
    for name, count in {"chair": 4, "halbench": 4, "amber": 20, "mmhal": 4, "ic": 4, "shortanswers": 4}.items():
        suite = build(name, SuiteOptions(vocabulary=str(tmp_path / "all" / "coco" / "synonyms.txt")))
        questions = suite.questions(suite.folder(tmp_path / "all"))
        assert len(questions) == count
        assert all(question.image["bytes"] or Path(question.image["uri"]).exists() for question in questions)
    pope = build("pope", SuiteOptions())
    assert pope.folder(tmp_path / "all").name == "coco"
    assert pope.questions(pope.folder(tmp_path / "all"))


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 1"):
        export_scenes("coco", "test", 0, 0, tmp_path / "a")
    with pytest.raises(ConfigError, match="unknown MiniWorld split"):
        export_scenes("coco", "train", 0, 1, tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        export_scenes("coco", "test", 0, 1, tmp_path / "c")
