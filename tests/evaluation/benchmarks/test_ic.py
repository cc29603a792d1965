"""IC with a simulated judge that knows MiniWorld's scenes: claims equal the project's own exact metrics."""

import random

import numpy as np
import pytest

from jsfree.errors import ConfigError, SourceError
from jsfree.evaluation import miniworld
from jsfree.evaluation.benchmarks.base import Answer
from jsfree.evaluation.benchmarks.ic import IC, parse_claims, parse_score, read_categories
from jsfree.evaluation.benchmarks.measuring import CountTable, measure
from jsfree.evaluation.benchmarks.miniworld_judge import MiniWorldTruth, random_faults
from jsfree.judge.judging import Judge
from jsfree.judge.replies import ReplyError
from jsfree.judge.settings import JudgeSettings
from jsfree.judge.simulated import Fault, SimulatedJudge
from jsfree.miniworld.world import noisy_caption, png_bytes, scene

SCENES = [scene("development", number) for number in range(12)]


@pytest.fixture
def data(tmp_path):
    """Images of scenes in folders by context."""
    for each in SCENES:
        path = tmp_path / "images" / each.context / f"{each.scene_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(each))
    return tmp_path / "images"


@pytest.fixture
def run(tmp_path, data):
    """Score captions of the scenes by IC."""

    def score(answers, form="both", fault=None):
        server = SimulatedJudge(MiniWorldTruth(SCENES), fault=fault or (lambda number, text: None))
        with server.serve() as url:
            settings = JudgeSettings(
                url=url, model="simulated-judge", cache=str(tmp_path / "cache"), concurrency=2, backoff=0.01
            )
            suite = IC(Judge(settings), form)
            measured = suite.score(data, answers)
        values = measure(CountTable.of(measured.rows), suite.measures)
        return measured, {name: each.value for name, each in values.items()}

    return score


def captions():
    rng = random.Random(0)
    ids = [f"{each.context}/{each.scene_id}.png" for each in SCENES]
    return [Answer(name, name, noisy_caption(each, rng)) for name, each in zip(ids, SCENES, strict=True)]


def test_claims_equal_the_exact_metrics_of_the_scenes(run):
    answers = captions()
    measured, values = run(answers, "claims")
    counts = [miniworld.count_caption(each, answer.text) for each, answer in zip(SCENES, answers, strict=True)]
    mentions, wrong = sum(each.mentions for each in counts), sum(each.hallucinated for each in counts)
    assert wrong > 0
    assert values["claim_precision"] == pytest.approx(1 - wrong / mentions)
    truth = sum(each.truth_objects for each in counts)
    assert values["claim_recall"] == pytest.approx(sum(each.distinct_correct for each in counts) / truth)
    assert values["claims"] == pytest.approx(mentions / len(SCENES))
    assert np.isnan(values["ic_precision"])
    assert {row.group for row in measured.rows} == {each.context for each in SCENES}


def test_scores_are_means_and_f1_is_their_harmonic_mean(run):
    answers = captions()
    measured, values = run(answers, "scores")
    counts = [miniworld.count_caption(each, answer.text) for each, answer in zip(SCENES, answers, strict=True)]
    precision = np.mean([1 + round(9 * (1 - each.hallucinated / each.mentions)) for each in counts])
    recall = np.mean([1 + round(9 * each.distinct_correct / each.truth_objects) for each in counts])
    assert (values["ic_precision"], values["ic_recall"]) == (pytest.approx(precision), pytest.approx(recall))
    assert values["ic_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert measured.details[0]["precision"]["analysis"].endswith("statements are supported.")
    assert [prompt["name"] for prompt in measured.judge["prompts"]] == [
        "ic_precision_analysis",
        "ic_recall_analysis",
        "ic_precision_score",
        "ic_recall_score",
    ]


def test_unusable_replies_are_error_rows_and_the_other_captions_are_scored(run):
    measured, values = run(captions(), "claims", fault=lambda number, text: Fault.REFUSAL if number == 0 else None)
    assert [error["kind"] for error in measured.errors] == ["refusal"]
    assert "I can't help with that" in measured.errors[0]["message"]
    assert sum(row.counts.get("claimed", 0) for row in measured.rows) == 11
    assert values["claim_recall"] > 0


def test_captions_of_other_images_are_error_rows(run):
    measured, _ = run([captions()[0], Answer("x", "park/other.png", "A dog.", where="a.jsonl, line 2")], "claims")
    assert len(measured.rows) == 1
    assert measured.errors[0]["message"].startswith("a.jsonl, line 2: ")


def test_questions_are_the_images_by_category(data, tmp_path):
    questions = IC(None).questions(data)
    assert sorted(question.image["id"] for question in questions) == sorted(answer.image_id for answer in captions())
    assert {question.prompt for question in questions} == {"Describe image in detail."}
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no images in folders of categories"):
        IC(None).questions(tmp_path / "empty")


def test_scores_and_claims_that_lack_the_form_are_refused():
    assert parse_score("A fine caption.\nScore: 8") == 8
    assert parse_score("score: 3 would be low.\n**Score: 10**") == 10
    for reply in ("8", "Score: 0", "Score: 11", "Score: high"):
        with pytest.raises(ReplyError, match="Score: n"):
            parse_score(reply)
    with pytest.raises(ReplyError, match="'seen' is not a list"):
        parse_claims('{"said": []}')
    with pytest.raises(ReplyError, match=r"said\[1\] is not an object with a string 'element' and a boolean 'shown'"):
        parse_claims('{"said": [{"element": "a", "shown": true}, {"element": "b", "shown": "yes"}], "seen": []}')


def test_a_second_judge_is_compared_with_the_first(tmp_path, data):
    def harsh(text, images):
        return MiniWorldTruth(SCENES[:6])(text, images)  # it does not know the other half of the images

    with SimulatedJudge(MiniWorldTruth(SCENES)).serve() as one, SimulatedJudge(harsh, model="harsh").serve() as two:
        judges = [
            Judge(JudgeSettings(url=url, model=model, cache=str(tmp_path / "cache")))
            for url, model in ((one, "simulated-judge"), (two, "harsh"))
        ]
        measured = IC(judges[0], "claims", judges[1]).score(data, captions())
    agreement = measured.judge["agreement"]
    assert agreement["claim_precision"]["answers"] == agreement["claim_recall"]["answers"] == 6
    assert agreement["claim_recall"]["pearson"] == pytest.approx(1)
    assert measured.judge["second"]["model"] == "harsh"
    assert [error["kind"] for error in measured.errors] == ["unparsable"] * 6


def test_a_server_that_fails_at_random_delays_the_run_only(run):
    faults = random_faults({Fault.SERVER_ERROR: 0.2, Fault.RATE_LIMIT: 0.2}, seed=1)
    assert {faults(number, "") for number in range(50)} == {Fault.SERVER_ERROR, Fault.RATE_LIMIT, None}
    measured, _ = run(captions()[:6], "claims", fault=faults)
    assert measured.errors == []
    assert measured.judge["replies"]["attempts"] > measured.judge["replies"]["paid"] == 6


def test_declared_categories_are_checked_and_limit_the_images(tmp_path):
    for name, count in {"people": 3, "charts": 1, "other": 2}.items():
        for number in range(count):
            path = tmp_path / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_bytes(SCENES[number]))
    declared = tmp_path / "categories.yaml"
    declared.write_text("charts: 1\npeople: 2\n", encoding="utf-8")
    questions = IC(None, categories=read_categories(str(declared))).questions(tmp_path / "images")
    assert [question.question_id for question in questions] == ["charts/0.png", "people/0.png", "people/1.png"]
    declared.write_text("charts: 2\npeople: 2\n", encoding="utf-8")
    with pytest.raises(SourceError, match="charts has 1 images, and 2 are declared"):
        IC(None, categories=read_categories(str(declared))).questions(tmp_path / "images")
    declared.write_text("charts: many\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="'charts' is 'many'"):
        read_categories(str(declared))
