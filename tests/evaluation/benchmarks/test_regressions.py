"""What improvement costs elsewhere: text answers and short answers before and after."""

import json
import math

import pytest

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.base import Answer
from jsfree.evaluation.benchmarks.results import Result
from jsfree.evaluation.benchmarks.short_answers import ShortAnswers, normalised
from jsfree.evaluation.benchmarks.text_answers import DRAWS, TextAnswers, repeated_ngrams


def result_of(suite, data, answers):
    return Result(suite, "m0", answers, suite.score(data, answers), {}, len(answers), resamples=10).as_json()


def test_perplexity_is_pooled_over_tokens(tmp_path):
    answers = [
        Answer("0/0", "0", "one two", {"logps": [math.log(0.5), math.log(0.25)], "finish": "stop"}),
        Answer("1/0", "1", "three", {"logps": [math.log(0.5)], "finish": "length"}),
    ]
    metrics = result_of(TextAnswers(), tmp_path, answers)["metrics"]
    assert metrics["perplexity"]["value"] == pytest.approx((0.5 * 0.25 * 0.5) ** (-1 / 3))
    assert metrics["answer_words"]["value"] == 1.5
    assert metrics["cut"]["value"] == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d e", (0, 2)),
        ("a b c d, a b c d", (1, 5)),
        ("Red red RED red red.", (1, 2)),
        ("a b c", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_repeated_ngrams_are_those_that_occurred_before(text, expected):
    assert repeated_ngrams(text) == expected


def test_the_variety_of_answers_is_that_of_all_of_them_together(tmp_path):
    answers = [Answer(f"{n}/0", f"{n}", "the red dog", {"logps": [-1.0]}) for n in range(4)]
    written = result_of(TextAnswers(), tmp_path, answers)
    assert written["metrics"]["distinct_2"]["value"] == pytest.approx(2 / 8)
    assert [each["name"] for each in written["described_metrics"]][-1] == "distinct_2"


def test_prompts_are_those_of_the_file_or_those_of_jsfree(tmp_path):
    shipped = TextAnswers().questions(tmp_path)
    assert len(shipped) == 40 * DRAWS
    (tmp_path / "prompts.txt").write_text("Say hello.\n\nSay hello.\nCount to three.\n", encoding="utf-8")
    questions = TextAnswers().questions(tmp_path)
    assert [question.question_id for question in questions] == ["0/0", "0/1", "0/2", "1/0", "1/1", "1/2"]
    assert {question.prompt for question in questions} == {"Say hello.", "Count to three."}
    (tmp_path / "prompts.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(SourceError, match="has no prompts"):
        TextAnswers().questions(tmp_path)


def test_case_articles_and_punctuation_do_not_make_an_answer_wrong(tmp_path):
    assert normalised("The red one.") == normalised("red one") != normalised("red")
    rows = [
        {"image": "1.jpg", "question": "Which colour?", "answer": "red", "type": "colour"},
        {"image": "1.jpg", "question": "Is it a dog?", "answer": "no"},
        {"image": "2.jpg", "question": "Is it a cat?", "answer": "yes", "question_id": "cat"},
    ]
    (tmp_path / "questions.json").write_text(json.dumps(rows), encoding="utf-8")
    suite = ShortAnswers()
    assert [question.question_id for question in suite.questions(tmp_path)] == ["0", "1", "cat"]
    answers = [Answer("0", "1.jpg", "Red."), Answer("1", "1.jpg", "Yes"), Answer("cat", "2.jpg", "Yes, a cat")]
    written = result_of(suite, tmp_path, [*answers, Answer("7", "9.jpg", "no")])
    assert written["metrics"]["accuracy"]["value"] == pytest.approx(1 / 3)
    assert written["groups"]["colour"]["metrics"]["accuracy"]["value"] == 1
    assert [error["kind"] for error in written["errors"]] == ["unknown_question"]
