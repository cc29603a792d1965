"""The report of several rounds says where the stop rule ended the run, or would have."""

import pytest

from jsfree.miniworld.world import CaptionNoise
from jsfree.report.page import render
from tests.report.test_page import Page
from tests.support import example_run

WORSE = CaptionNoise(0.75, 0.02, 0.05, 0.03, (0.1,) * 5)
"""A captioner that omits most objects, so its captions are short."""


@pytest.fixture
def collapse(monkeypatch):
    monkeypatch.setitem(example_run.CARE, 2, WORSE)
    monkeypatch.setitem(example_run.CARE, 3, WORSE)


def run_of(folder, **settings):
    return example_run.build(folder, errors=False, source={"count": 40}, **settings)


def page_of(folder, **settings):
    return Page(render(run_of(folder, **settings)))


def test_without_a_rule_the_page_says_where_the_default_one_would_have_stopped(tmp_path, collapse):
    page = page_of(tmp_path / "run", rounds=3)
    assert "With the default rule it would have stopped after round 2: m2 is worse than m1" in page.words
    assert "Its result would have been m1." in page.words
    assert "m0 (before)m1m2m3 (after)" in page.words
    assert "After three rounds" in page.words
    lost = page.words.partition("would have stopped")[2].partition("Words −")[2]
    assert 30 < float(lost.split(" %")[0]) < 90
    assert "m1 → m2" in page.words
    assert "m2 → m3" in page.words


def test_a_stopped_run_is_reported_as_complete_with_the_last_good_model_as_its_result(tmp_path, collapse):
    run = run_of(tmp_path / "run", rounds=2, rounds_stop={})
    page = Page(render(run))
    assert "after round 2: m2 is worse than m1 in greedy captions: Words −" in page.words
    assert "The result of the run is m1." in page.words
    assert "m0 (before)m1 (after)m2" in page.words
    assert "After one round" in page.words
    assert "After (m1, greedy)" in page.words
    assert "2 of 2; the result is m1 (stop rule)" in page.words
    recall = run.round(1).read_json("metrics.json")["after"]["greedy"]["recall"]["value"]
    assert f"It names {100 * recall:.1f} % of the objects" in page.words


def test_rounds_that_are_not_worse_are_reported_as_such(tmp_path):
    settings = {"rounds": 2, "rounds_stop": {"max_lost_words": 0.9, "max_loss": 0.1}}
    page = page_of(tmp_path / "ruled", **settings)
    assert "No round made the captions worse by the limits of the run’s stop rule." in page.words
    assert "not worse" in page.by_class["verdict"]
    assert "at least −90.0 %" in page.words


def test_one_round_has_no_stop_rule(tmp_path):
    assert "Stop rule" not in page_of(tmp_path / "run").words
