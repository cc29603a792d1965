"""Scores of the sentences of comparisons, and which sentences only one model says."""

import pytest
from starlette.testclient import TestClient

from jsfree import config as configuration
from jsfree.errors import ModelError
from jsfree.miniworld import world
from jsfree.stages.scoring import ClipScorer
from jsfree.stages.sentences import sentences
from serve.app import served_models
from serve.engines.clip import SentenceScorer
from serve.http import routes as api
from serve.http.compare import mark_unique
from tests.support.asking import scene_url


@pytest.fixture(scope="module")
def scored(finished_run, engines):
    config = finished_run.run.config
    scorer = SentenceScorer(config)
    app = api.create_app(served_models(finished_run.run), engines, config.serve, config.prompt, scorer=scorer)
    with TestClient(app) as client:
        yield client


def test_sentences_have_the_scores_of_the_scoring_stage(scored, finished_run):
    compared = scored.post("/v1/compare", json={"image": scene_url(3), "max_tokens": 60}).json()
    picture = world.draw(world.scene("development", 3))
    for caption in compared["captions"]:
        texts = sentences(caption["text"])
        (expected,) = ClipScorer(finished_run.run.config).sentence_scores([picture], [texts])
        assert [each["text"] for each in caption["sentences"]] == texts
        assert [each["score"] for each in caption["sentences"]] == pytest.approx(expected, abs=1e-5)
        assert caption["score"] == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_models_may_be_chosen_and_scores_left_out(scored):
    body = {"image": scene_url(3), "max_tokens": 12, "models": ["m1", "after"], "scores": False}
    compared = scored.post("/v1/compare", json=body).json()
    (caption,) = compared["captions"]
    assert (caption["model"], caption["score"]) == ("m1", None)
    assert {each["score"] for each in caption["sentences"]} == {None}
    assert all(each["unique"] for each in caption["sentences"])


def test_a_missing_clip_model_leaves_the_scores_out(finished_run, engines, monkeypatch):
    def missing(*_):
        raise ModelError("there is no CLIP")

    monkeypatch.setattr("serve.engines.clip.ClipScorer", missing)
    config = configuration.with_overrides(finished_run.run.config, [])
    app = api.create_app(
        served_models(finished_run.run), engines, config.serve, config.prompt, scorer=SentenceScorer(config)
    )
    with TestClient(app) as client:
        compared = client.post("/v1/compare", json={"image": scene_url(3), "max_tokens": 12}).json()
    assert {caption["score"] for caption in compared["captions"]} == {None}


def test_sentences_that_only_one_caption_has_are_marked():
    captions = [["There is a red box.", "A cat."], ["there is a red box!", "A dog."], ["A dog.", "A dog."]]
    assert mark_unique(captions) == [[False, True], [False, False], [False, False]]
    assert mark_unique([["A."]]) == [[True]]
    assert mark_unique([["A."], []]) == [[True], []]
