"""Changes between two models of the same images, and the rule that ends a run by them, on cases counted by hand."""

import numpy as np
import pytest

from jsfree import config
from jsfree.config import RoundsStop
from jsfree.errors import ConfigError
from jsfree.evaluation import labelfree, rounds_stop
from jsfree.run.run import Run

NEUTRAL = {"value": 0.0, "low": -0.0001, "high": 0.0001}
NAMES = ("clip_score", "low_clip_sentences", "words", "repeated_sentences", "truncated")


def caption(sample_id, *sentences, scores=None, finish="stop"):
    scores = scores or [0.3] * len(sentences)
    scored = [{"text": sentence, "score": score} for sentence, score in zip(sentences, scores, strict=True)]
    mean = sum(scores) / len(scores) if scores else 0.0
    return {"sample_id": sample_id, "text": " ".join(sentences), "finish": finish, "sentences": scored, "score": mean}


def around(value, half=0.001):
    return {"value": value, "low": value - half, "high": value + half}


def changed(**changes):
    return dict.fromkeys(NAMES, NEUTRAL) | changes


def is_worse(rule=None, **changes):
    return rounds_stop.judge(2, "greedy", changed(**changes), rule or RoundsStop()).is_worse


def test_changes_of_a_few_captions():
    before = [
        caption("a", "One red cup.", "A dog.", scores=[0.4, 0.2]),
        caption("b", "A cat.", "A tree.", scores=[0.1, 0.3]),
        caption("c"),
        caption("gone", "A boat."),
    ]
    after = [
        caption("new", "A car."),
        caption("c", "A box.", scores=[0.5]),
        caption("b", "A cat.", "a cat", "A CAT!", scores=[0.3, 0.3, 0.15], finish="length"),
        caption("a", "One red cup.", scores=[0.4]),
    ]
    found = labelfree.changes(before, after, low_score=0.2)
    assert set(found) == set(NAMES)
    # a: 0.4 - 0.3, b: 0.25 - 0.2; c has no sentence before.
    assert found["clip_score"]["value"] == pytest.approx((0.1 + 0.05) / 2)
    assert found["low_clip_sentences"]["value"] == pytest.approx(1 / 5 - 1 / 4)
    assert found["words"]["value"] == pytest.approx((3 + 6 + 2) / (5 + 4 + 0) - 1)
    assert found["repeated_sentences"]["value"] == pytest.approx(2 / 3)
    assert found["truncated"]["value"] == pytest.approx(1 / 3)


def test_equal_captions_have_not_changed():
    rows = [caption(str(number), "A cat.", "A dog.", scores=[0.1 * (number % 5), 0.3]) for number in range(30)]
    found = labelfree.changes(rows, list(reversed(rows)), low_score=0.2)
    assert all(interval == {"value": 0.0, "low": 0.0, "high": 0.0} for interval in found.values())


def test_intervals_are_those_of_paired_differences():
    """Scores vary far more between images than between models, so only pairing reveals the change."""
    rng = np.random.default_rng(0)
    base, gain = rng.normal(0.3, 0.1, 400), rng.normal(0.004, 0.01, 400)
    before = [caption(str(number), "A cat.", scores=[base[number]]) for number in range(400)]
    after = [caption(str(number), "A cat.", scores=[base[number] + gain[number]]) for number in range(400)]
    found = labelfree.changes(before, after, 0.2, resamples=4000)["clip_score"]
    half = 1.96 * gain.std() / 20
    assert found["value"] == pytest.approx(gain.mean())
    assert (found["low"], found["high"]) == pytest.approx((gain.mean() - half, gain.mean() + half), abs=1e-4)
    assert found["low"] > 0
    assert labelfree.summarise(before, 0.2)["clip_score"]["high"] > labelfree.summarise(after, 0.2)["clip_score"]["low"]


def test_changes_without_a_common_image_are_an_error():
    with pytest.raises(ConfigError, match="no image has captions of both models"):
        labelfree.changes([caption("a", "A cat.")], [caption("b", "A cat.")], 0.2)


@pytest.mark.parametrize(
    ("changes", "worse"),
    [
        ({}, False),
        ({"clip_score": around(0.05)}, False),
        ({"clip_score": around(-0.05)}, True),
        ({"clip_score": around(-0.05, half=0.1)}, False),
        ({"words": around(-0.3)}, True),
        ({"words": around(0.3)}, False),
        ({"repeated_sentences": around(0.5)}, True),
        ({"repeated_sentences": around(-0.5)}, False),
        ({"truncated": around(0.2)}, True),
        ({"low_clip_sentences": around(0.5)}, False),
        ({"clip_score": around(0.05), "words": around(-0.3)}, True),
        ({"clip_score": around(0.05), "repeated_sentences": around(0.5)}, True),
    ],
)
def test_a_round_is_worse_if_quality_falls_or_its_price_rises_for_certain(changes, worse):
    assert is_worse(**changes) is worse


@pytest.mark.parametrize(
    ("name", "limit", "change"),
    [
        ("max_loss", 0.01, "clip_score"),
        ("max_lost_words", 0.2, "words"),
        ("max_added_repeats", 0.3, "repeated_sentences"),
        ("max_added_truncated", 0.04, "truncated"),
    ],
)
def test_a_limit_is_exceeded_only_by_the_whole_interval(name, limit, change):
    rule = RoundsStop(**{name: limit})
    sign = -1 if name in ("max_loss", "max_lost_words") else 1
    assert not is_worse(rule, **{change: around(sign * limit)})
    assert not is_worse(rule, **{change: around(sign * (limit + 0.0009))})
    assert is_worse(rule, **{change: around(sign * (limit + 0.0011))})


def test_quality_may_be_the_share_of_low_sentences():
    rule = RoundsStop(metric="low_clip_sentences", max_loss=0.02)
    assert not is_worse(rule, low_clip_sentences=around(0.015))
    assert is_worse(rule, low_clip_sentences=around(0.025))
    assert not is_worse(rule, low_clip_sentences=around(-0.5), clip_score=around(-0.5))


def test_a_verdict_names_the_metric_its_interval_and_the_limit():
    verdict = rounds_stop.judge(3, "greedy", changed(repeated_sentences=around(0.31, 0.06)), RoundsStop())
    assert str(verdict) == (
        "m3 is worse than m2 in greedy captions: Repeated sentences +0.31 (+0.25 to +0.37; limit +0.05)"
    )
    assert verdict.as_json() == {
        "worse_round": 3,
        "last_good_round": 2,
        "mode": "greedy",
        "reasons": ["Repeated sentences +0.31 (+0.25 to +0.37; limit +0.05)"],
    }
    fewer = rounds_stop.judge(2, "greedy", changed(words=around(-0.25, 0.02)), RoundsStop())
    assert "Words −25.0 % (−27.0 to −23.0; limit −5.0)" in str(fewer)


BAD = changed(words=around(-0.5))
GOOD = changed()


def run_of(folder, by_round, **settings):
    """A run whose rounds have only the changes of their evaluation."""
    run = Run.open(config.build({"run": str(folder), "rounds": 4, **settings}, where="test"))
    for number, changes in by_round.items():
        stored = {"changes": {"greedy": changes, "sampled": GOOD}} if changes else {}
        run.round(number).write_json("label_free.json", stored)
    return run


def test_a_run_ends_at_the_first_worse_round(tmp_path):
    run = run_of(tmp_path / "run", {1: GOOD, 2: GOOD, 3: BAD, 4: BAD}, rounds_stop={})
    assert rounds_stop.stop_of(run).round == 3
    assert rounds_stop.last_round(run) == 3
    assert rounds_stop.good_rounds(run, [1, 2, 3, 4]) == [1, 2]


def test_the_first_round_is_not_judged(tmp_path):
    run = run_of(tmp_path / "run", {1: BAD, 2: GOOD}, rounds_stop={})
    assert rounds_stop.stop_of(run) is None
    assert rounds_stop.last_round(run) == 4
    assert rounds_stop.good_rounds(run, [1, 2]) == [1, 2]


def test_without_the_rule_no_round_is_worse(tmp_path):
    run = run_of(tmp_path / "run", {1: GOOD, 2: BAD})
    assert rounds_stop.stop_of(run) is None
    assert rounds_stop.good_rounds(run, [1, 2]) == [1, 2]
    assert [verdict.is_worse for verdict in rounds_stop.verdicts(run, RoundsStop())] == [True]


def test_the_rule_compares_the_captions_of_its_mode(tmp_path):
    assert rounds_stop.stop_of(run_of(tmp_path / "a", {2: BAD}, rounds_stop={"mode": "sampled"})) is None
    assert rounds_stop.stop_of(run_of(tmp_path / "b", {2: BAD}, rounds_stop={"mode": "greedy"})).round == 2
    with pytest.raises(ConfigError, match=r"'rounds_stop.mode' is 'beam', but 'evaluate.modes' has greedy, sampled"):
        run_of(tmp_path / "c", {}, rounds_stop={"mode": "beam"})


def test_rounds_without_changes_as_earlier_versions_stored_them_are_not_judged(tmp_path):
    run = run_of(tmp_path / "run", {1: {}, 2: {}, 3: BAD}, rounds_stop={})
    assert rounds_stop.stop_of(run).round == 3


def test_metrics_with_truth_are_never_read(tmp_path):
    run = run_of(tmp_path / "run", {1: GOOD, 2: GOOD}, rounds_stop={})
    run.round(2).write("metrics.json", b"not even JSON")
    assert rounds_stop.stop_of(run) is None


def test_runs_without_the_setting_keep_their_fingerprint():
    plain = config.RunConfig()
    assert plain.rounds_stop is None
    assert "rounds_stop" not in config.settings.fingerprinted_settings(plain)
    ruled = config.load(None, ["rounds_stop={}", "rounds_stop.max_added_repeats=0.2"])
    assert ruled.rounds_stop == RoundsStop(max_added_repeats=0.2)
    assert ruled.own_fingerprint != plain.own_fingerprint
    assert config.with_overrides(ruled, ["rounds_stop=null"]) == plain
