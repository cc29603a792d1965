"""MMHal-Bench: the rule for ratings, the types by position, and a run with a simulated judge."""

import json

import pytest

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.base import Answer
from jsfree.evaluation.benchmarks.measuring import CountTable, measure
from jsfree.evaluation.benchmarks.mmhal import MMHal, informativeness, parse_rating
from jsfree.judge.judging import Judge
from jsfree.judge.settings import JudgeSettings
from jsfree.judge.simulated import Fault, SimulatedJudge


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Good.\nRating: 5", 5),
        ("rating: 0", 0),
        ("Rating: 3, so the rating: 3 stands", 3),
        ("Rating: 2 or rating: 4", None),
        ("Rating:5", None),
        ("Rating: 7", None),
        ("I would give it a five.", None),
    ],
)
def test_exactly_one_rating_must_be_found(reply, rating):
    assert parse_rating(reply) == rating


def test_informativeness_is_apart_from_hallucination():
    assert [informativeness(rating) for rating in range(7)] == [0, 1, 2, 0, 1, 2, 3]


@pytest.fixture
def data(tmp_path):
    """Sixteen questions: two of each type."""
    items = [
        {
            "image_id": f"image{number}",
            "image_src": f"https://example.org/{number}.jpg",
            "question": f"Question {number}?",
            "gt_answer": "A cup.",
            "image_content": ["cup", "table"],
        }
        for number in range(16)
    ]
    (tmp_path / "response_template.json").write_text(json.dumps(items), encoding="utf-8")
    return tmp_path


def score(data, ratings, fault=lambda number, text: None):
    """Score answers that the judge rates with the given numbers."""

    def answer(text, images):
        return f"Some analysis.\nRating: {text.split('<answer>')[1].split()[1]}"

    answers = [Answer(str(number), f"image{number}", f"answer {rating}") for number, rating in enumerate(ratings)]
    with SimulatedJudge(answer, fault=fault).serve() as url:
        settings = JudgeSettings(url=url, model="simulated-judge", cache=str(data / "cache"), concurrency=1)
        suite = MMHal(Judge(settings))
        measured = suite.score(data, answers)
    table = CountTable.of(measured.rows)
    return measured, {name: each.value for name, each in measure(table, suite.measures).items()}


def test_metrics_of_known_ratings(data):
    ratings = [6, 5, 4, 3, 2, 1, 0, 6, 9, 3]  # 9 is no rating and counts 0
    measured, values = score(data, ratings)
    assert values["score"] == pytest.approx(3.0)
    assert values["hallucination_rate"] == pytest.approx(0.4)
    assert values["informativeness"] == pytest.approx((3 + 2 + 1 + 0 + 2 + 1 + 0 + 3 + 0 + 0) / 10 / 3)
    assert values["unrated"] == pytest.approx(0.1)
    assert [row.group for row in measured.rows][:9] == [f"type {number}" for number in (*range(8), 0)]
    assert measured.judge["model"] == "simulated-judge"
    assert any("16 questions" in note for note in measured.notes)
    assert any("not the published one" in note for note in measured.notes)


def test_a_reply_that_did_not_come_is_an_error_row_and_no_zero(data):
    measured, values = score(data, [6, 6, 6], fault=lambda number, text: Fault.TOO_LONG if number == 1 else None)
    assert values["score"] == 6.0
    assert [(error["sample_id"], error["kind"]) for error in measured.errors] == [("1", "rejected")]


def test_items_without_a_key_are_reported(data):
    path = data / "response_template.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"gt_answer"', '"answer"', 1), encoding="utf-8")
    with pytest.raises(SourceError, match=r"response_template\.json, record 0 has no 'gt_answer'"):
        MMHal(None).questions(data)


def test_questions_keep_their_order(data):
    questions = MMHal(None).questions(data)
    assert [question.question_id for question in questions] == [str(number) for number in range(16)]
    assert questions[3].image["uri"].endswith("images/3.jpg")


def test_answers_by_image_as_in_files_of_mmhal(data):
    def answer(text, images):
        return "Rating: 4"

    with SimulatedJudge(answer).serve() as url:
        judge = Judge(JudgeSettings(url=url, model="simulated-judge", cache=str(data / "cache")))
        measured = MMHal(judge).score(data, [Answer("image5", "image5", "A cup."), Answer("other", "other", "A cup.")])
    assert [detail["question_id"] for detail in measured.details] == ["5"]
    assert [error["sample_id"] for error in measured.errors] == ["other"]
