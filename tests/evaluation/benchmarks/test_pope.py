"""POPE: the four ways of reading answers, the questions of data files, and the generator."""

import json
from collections import Counter

import pytest

from jsfree.errors import ConfigError, SourceError
from jsfree.evaluation.benchmarks.base import Answer
from jsfree.evaluation.benchmarks.measuring import CountTable, measure
from jsfree.evaluation.benchmarks.pope import SCORINGS, Pope
from jsfree.evaluation.benchmarks.pope_generator import (
    generate_questions,
    objects_by_file,
    question_text,
    write_questions,
)
from jsfree.miniworld.world import scene

READ = [  # answer, label, then how each scoring reads it
    ("Yes", True, {"original": True, "vcd": True, "lmms-eval": True, "vlmevalkit": True}),
    ("no", False, {"original": False, "vcd": False, "lmms-eval": False, "vlmevalkit": False}),
    ("No, there is none.", False, {"original": False, "vcd": False, "lmms-eval": None, "vlmevalkit": False}),
    ("There is one. No doubt.", True, {"original": True, "vcd": False, "lmms-eval": None, "vlmevalkit": False}),
    ("There is not a dog", False, {"original": False, "vcd": False, "lmms-eval": None, "vlmevalkit": None}),
    ("I do know a dog", False, {"original": True, "vcd": False, "lmms-eval": None, "vlmevalkit": None}),
    ("NO", False, {"original": True, "vcd": False, "lmms-eval": False, "vlmevalkit": False}),
    ("Yes and no", True, {"original": False, "vcd": True, "lmms-eval": None, "vlmevalkit": None}),
    ("", True, {"original": True, "vcd": False, "lmms-eval": None, "vlmevalkit": None}),
]


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize(("answer", "label", "expected"), READ, ids=[answer for answer, _, _ in READ])
def test_answers_are_read_as_each_scoring_reads_them(scoring, answer, label, expected):
    assert SCORINGS[scoring].says_yes(answer, label) is expected[scoring]


@pytest.fixture
def data(tmp_path):
    """Two images with a present and an absent object each, random and popular."""
    rows = [
        {"question_id": 1, "image": "1.jpg", "text": "Is there a dog in the image?", "label": "yes"},
        {"question_id": 2, "image": "1.jpg", "text": "Is there a cat in the image?", "label": "no"},
        {"question_id": 3, "image": "2.jpg", "text": "Is there a bus in the image?", "label": "yes"},
        {"question_id": 4, "image": "2.jpg", "text": "Is there an elephant in the imange?", "label": "no"},
    ]
    for kind in ("random", "popular"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"coco_pope_{kind}.json").write_text(lines, encoding="utf-8")
    return tmp_path


def answers(*texts, prefix=""):
    return [Answer(f"{prefix}{number}", "", text) for number, text in enumerate(texts, 1)]


def test_metrics_are_those_of_the_confusion_matrix(data):
    suite = Pope(kinds=("random",))
    measured = suite.score(data, answers("Yes", "Yes", "No", "No"))
    values = {name: each.value for name, each in measure(CountTable.of(measured.rows), suite.measures).items()}
    assert values == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.5, "undecided": 0.0}
    measured = suite.score(data, answers("Yes", "Yes", "Yes", "No"))
    values = {name: each.value for name, each in measure(CountTable.of(measured.rows), suite.measures).items()}
    assert values["precision"] == pytest.approx(2 / 3)
    assert (values["recall"], values["f1"], values["yes_ratio"]) == (1.0, pytest.approx(0.8), 0.75)


def test_undecided_answers_are_wrong_and_counted(data):
    suite = Pope(kinds=("random",), scoring="lmms-eval")
    measured = suite.score(data, answers("yes", "no", "perhaps", "No."))
    values = {name: each.value for name, each in measure(CountTable.of(measured.rows), suite.measures).items()}
    assert (values["accuracy"], values["undecided"], values["recall"]) == (0.5, 0.5, 0.5)
    assert [detail["read_as"] for detail in measured.details] == ["yes", "no", None, None]


def test_several_kinds_have_distinct_ids_and_are_reported_by_kind(data):
    suite = Pope(kinds=("random", "popular"))
    assert [question.question_id for question in suite.questions(data)][::4] == ["random/1", "popular/1"]
    measured = suite.score(data, answers("Yes", "No", "Yes", "No", prefix="popular/"))
    assert {row.group for row in measured.rows} == {"popular"}


def test_the_kinds_of_which_there_is_no_file_are_left_out(data):
    for kind in ("popular", "adversarial"):
        (data / f"coco_pope_{kind}.json").unlink(missing_ok=True)
    suite = Pope()
    questions = suite.questions(data)
    assert not any("/" in question.question_id for question in questions)  # the ids are those of the only file
    assert any("Questions: random (hash" in note for note in suite.score(data, []).notes)


def test_prompts_have_the_suffix_of_the_scoring(data):
    prompts = {scoring: Pope(("random",), scoring).questions(data)[0].prompt for scoring in SCORINGS}
    assert prompts["original"] == "Is there a dog in the image?"
    assert prompts["vcd"].endswith("? Please answer this question with one word.")
    assert prompts["lmms-eval"].endswith("?\nAnswer the question using a single word or phrase.")


def test_a_copy_with_the_generators_error_is_declared(data):
    assert "1 of 4 questions say 'imange'" in Pope(("random",)).score(data, answers("Yes")).notes[0]
    path = data / "coco_pope_random.json"
    path.write_text(path.read_text(encoding="utf-8").replace("imange", "image"), encoding="utf-8")
    assert "this copy of the files is repaired" in Pope(("random",)).score(data, answers("Yes")).notes[0]


def test_answers_to_other_questions_are_error_rows(data):
    measured = Pope(("random",)).score(data, [Answer("9", "", "Yes", where="a.jsonl, line 3")])
    assert measured.rows == []
    assert measured.errors[0]["kind"] == "unknown_question"
    assert measured.errors[0]["message"].startswith("a.jsonl, line 3: the data have no question '9'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"label": "yes"', '"label": "maybe"', 1), r"line 1: 'label' is 'maybe'"),
        (lambda text: text.replace('"image": "1.jpg", ', "", 1), r"line 1 has no 'image'"),
        (lambda text: text.replace('"question_id": 2', '"question_id": 1'), r"line 2: question_id 1 occurs again"),
        (lambda text: text + "{", r"line 5 is not valid JSON"),
    ],
)
def test_wrong_files_are_reported_with_line_and_key(data, change, message):
    path = data / "coco_pope_random.json"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(SourceError, match=message):
        Pope(("random",)).questions(data)
    with pytest.raises(SourceError, match=r"has no coco_pope_adversarial\.json.*get it from"):
        Pope(("adversarial",)).questions(data)


OBJECTS = {f"{number}.png": [item.name for item in scene("development", number).objects] for number in range(200)}


@pytest.mark.parametrize("kind", ["random", "popular", "adversarial"])
def test_generated_questions_alternate_between_present_and_absent_objects(kind):
    rows = generate_questions(OBJECTS, kind, images=40, seed=3)
    assert [row["question_id"] for row in rows] == list(range(1, 241))
    assert [row["label"] for row in rows] == ["yes", "no"] * 120
    for row in rows:
        name = row["text"].split(" in the image?")[0].split(" ", 3)[3]
        assert (name in OBJECTS[row["image"]]) == (row["label"] == "yes")
    assert len({(row["image"], row["text"]) for row in rows}) == 240
    assert set(Counter(row["image"] for row in rows).values()) == {6}
    assert rows == generate_questions(OBJECTS, kind, images=40, seed=3) != generate_questions(OBJECTS, kind, images=40)


def test_absent_objects_are_the_most_frequent_or_the_most_often_seen_together():
    objects = {"a": ["cup", "pot", "fork"], "b": ["cup", "dog"], "c": ["car", "bus"], "d": ["car", "bus", "cup"]}
    objects |= {"e": ["car"], "f": ["dog", "pot"]}
    popular = generate_questions(objects, "popular", images=2, seed=1)
    asked = [row["text"] for row in popular if row["image"] == "a" and row["label"] == "no"]
    assert asked == [question_text(name) for name in ("car", "bus", "dog")]  # 3, 2 and 2 images; ties by name
    adversarial = generate_questions(objects, "adversarial", images=2, seed=1)
    for present, absent in zip(adversarial[::2], adversarial[1::2], strict=True):
        if present["image"] == "a" and "pot" in present["text"]:
            assert absent["text"] == question_text("dog")  # the only object seen with a pot, but for the image's own


def test_the_article_is_repaired_or_as_in_the_original():
    assert question_text("dog") == question_text("dog", repaired=False) == "Is there a dog in the image?"
    assert question_text("elephant") == "Is there an elephant in the image?"
    assert question_text("elephant", repaired=False) == "Is there an elephant in the imange?"


def test_too_few_images_are_an_error():
    with pytest.raises(ConfigError, match="1 images have 3 or more annotated categories, not 2; ask for fewer"):
        generate_questions({"a": ["x", "y", "z"], "b": ["x"]}, "random", images=2)


def test_questions_are_generated_from_a_file_of_instances(tmp_path):
    instances = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(("cup", "dog", "car", "bus", "owl"))],
        "annotations": [{"image_id": 7, "category_id": number} for number in (0, 0, 1)]
        + [{"image_id": 8, "category_id": 2}],
    }
    path = tmp_path / "instances_val2014.json"
    path.write_text(json.dumps(instances), encoding="utf-8")
    objects = objects_by_file(path)
    assert objects == {"a.jpg": {"cup", "dog"}, "b.jpg": {"car"}}
    objects["b.jpg"] |= {"bus", "owl"}
    write_questions(tmp_path / "coco_pope_popular.json", generate_questions(objects, "popular", images=2, pairs=2))
    assert len(Pope(("popular",)).questions(tmp_path)) == 8
    del instances["annotations"][0]["category_id"]
    path.write_text(json.dumps(instances), encoding="utf-8")
    with pytest.raises(SourceError, match="lacks 'category_id'"):
        objects_by_file(path)
