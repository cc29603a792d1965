"""Files of answers, and the messages about wrong ones."""

import json

import pytest

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.answers import read_answers, require_unique
from jsfree.evaluation.benchmarks.base import Question


def written(tmp_path, text):
    path = tmp_path / "answers.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_one_answer_a_line(tmp_path):
    path = written(
        tmp_path, '{"image_id": 42, "caption": "A dog."}\n\n{"id": "q1", "response": "Yes", "objs": ["a"]}\n'
    )
    first, second = read_answers(path)
    assert (first.question_id, first.image_id, first.text) == ("42", "42", "A dog.")
    assert (second.question_id, second.image_id, second.text) == ("q1", "q1", "Yes")
    assert second.extra == {"objs": ["a"]}
    assert second.where.endswith("answers.jsonl, line 3")


def test_lists_and_the_layout_of_chair(tmp_path):
    record = {"image_id": 7, "caption": "A dog."}
    assert [answer.image_id for answer in read_answers(written(tmp_path, json.dumps([record, record])))] == ["7", "7"]
    whole = {"overall": {}, "imgToEval": {"0": record | {"Bleu_1": 0.0}}}
    assert read_answers(written(tmp_path, json.dumps(whole)))[0].image_id == "7"


def test_questions_give_the_images_of_answers(tmp_path):
    image = {"id": "COCO_7", "uri": None, "bytes": None, "sha256": None}
    path = written(tmp_path, '{"question_id": 3, "text": "yes"}')
    assert read_answers(path, [Question("3", image, "Is it?")])[0].image_id == "COCO_7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image_id": 1, "caption": "x"}\n{"image_id": 2\n', r"line 2 is not valid JSON"),
        ('{"image_id": 1}', r"line 1 has none of the keys 'caption', 'text'"),
        ('{"caption": "A dog."}', r"line 1 has none of the keys 'image_id'"),
        ('{"image_id": 1, "caption": null}', r"line 1: 'caption' is not a string"),
        ('{"image_id": [1], "caption": ""}', r"line 1: 'image_id' is \[1\]"),
        ('"a dog"\n', r"line 1: a JSON object is expected"),
        ("", "holds no answers"),
    ],
)
def test_wrong_records_are_named(tmp_path, text, message):
    with pytest.raises(SourceError, match=message):
        read_answers(written(tmp_path, text))


def test_questions_must_not_be_answered_twice(tmp_path):
    path = written(tmp_path, '{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n')
    with pytest.raises(SourceError, match=r"line 2: question_id '1' occurs again \(first: .*line 1\)"):
        require_unique(read_answers(path))
