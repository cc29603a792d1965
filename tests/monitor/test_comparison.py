"""Two runs are compared on the images that both evaluated, against differences computed by hand."""

import random
import shutil
import statistics

import pytest

from jsfree import config, schemas
from jsfree.errors import RunError
from jsfree.evaluation.miniworld import count_caption
from jsfree.miniworld import world
from jsfree.monitor.comparison import compare_runs, paired_differences
from jsfree.run.run import Run
from tests.support import example_run


@pytest.fixture(scope="module")
def runs(one_round, two_rounds) -> tuple[Run, Run]:
    return one_round, two_rounds


def captions(run: Run, number: int) -> dict[str, dict]:
    rows = run.stage(number, f"captions_scored/m{number}-greedy").read_shards(schemas.SCORED_CAPTIONS).to_pylist()
    return {row["image"]["id"]: row for row in rows}


def line(compared, name: str, with_truth: bool):
    mode = next(each for each in compared.modes if each.mode == "greedy" and each.with_truth == with_truth)
    return next(each for each in mode.metrics if each.metric == name), mode


def test_differences_are_those_of_the_same_images(runs):
    compared = compare_runs(*runs)
    assert compared.models == ("m1", "m2")
    first, second = captions(runs[0], 1), captions(runs[1], 2)
    assert first.keys() == second.keys()
    words, mode = line(compared, "words", True)
    assert mode.images == len(first) == 40
    changes = [len(second[key]["text"].split()) - len(first[key]["text"].split()) for key in first]
    mean, error = statistics.mean(changes), statistics.stdev(changes) / len(changes) ** 0.5
    assert words.difference["value"] == pytest.approx(mean)
    assert words.difference["low"] == pytest.approx(mean - 1.96 * error, abs=0.5 * error)
    assert words.difference["high"] == pytest.approx(mean + 1.96 * error, abs=0.5 * error)

    def recall(rows):
        counts = [count_caption(world.scene_from_id(key), row["text"]) for key, row in rows.items()]
        return sum(c.distinct_correct for c in counts) / sum(c.truth_objects for c in counts)

    recalled, _ = line(compared, "recall", True)
    assert recalled.difference["value"] == pytest.approx(recall(second) - recall(first))


def test_a_pairing_narrows_the_interval_of_what_varies_between_images():
    rng = random.Random(0)
    pairs = [((1.0, base := rng.gauss(0, 10)), (1.0, base + 1 + rng.gauss(0, 0.1))) for _ in range(200)]
    found = paired_differences(pairs, {"mean": lambda sums: sums[:, 1] / sums[:, 0]})["mean"]
    assert found.value == pytest.approx(1.0, abs=0.05)
    assert found.high - found.low < 0.06


def test_settings_that_differ_have_both_values(runs):
    changed = compare_runs(*runs).settings
    assert changed["train.learning_rate"] == (config.RunConfig().train.learning_rate, 1e-4)
    assert changed["rounds"] == (1, 2)
    assert "run" not in changed


def test_clip_scores_have_differences_and_those_of_other_scorers_have_none(runs, tmp_path):
    score, _ = line(compare_runs(*runs), "clip_score", False)
    first, second = captions(runs[0], 1), captions(runs[1], 2)
    expected = statistics.mean(second[key]["score"] - first[key]["score"] for key in first)
    assert score.difference["value"] == pytest.approx(expected)
    shutil.copytree(runs[0].folder.path, tmp_path / "other")
    settings = {**example_run.SETTINGS, "clip": {"ref": "miniworld:prose-clip"}, "run": str(tmp_path / "other")}
    compared = compare_runs(runs[0], Run(config.build(settings, where="test")))
    assert line(compared, "clip_score", False)[0].difference is None
    assert line(compared, "words", False)[0].difference is not None


def test_runs_on_other_images_have_no_differences(runs, tmp_path):
    other = example_run.build(
        tmp_path / "other",
        errors=False,
        source={"count": 30},
        evaluate={"source": {"split": "test", "count": 5}},
        prompt="What is here?",
    )
    compared = compare_runs(runs[0], other)
    words, mode = line(compared, "words", True)
    assert mode.images == 0
    assert words.difference is None
    assert words.first is not None
    assert words.second is not None


def test_a_run_without_metrics_is_refused(runs, tmp_path):
    begun = Run.open(config.build({"run": str(tmp_path / "begun")}, where="test"))
    with pytest.raises(RunError, match="not been evaluated yet"):
        compare_runs(runs[0], begun)
